//! Texts from registries and credential helpers, made fit for errors and logs: one line, of limited length, without
//! control characters.

/// At most `max_chars` characters of a text, in one line. Control characters, and those that change the direction of the
/// text, become spaces; several spaces become one.
pub(crate) fn one_line(text: &str, max_chars: usize) -> String {
    let unsafe_to_show = |c: char| {
        c.is_control()
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
    };
    let words = text.split(|c: char| c.is_whitespace() || unsafe_to_show(c)).filter(|word| !word.is_empty());
    let mut line = String::new();
    let mut left = max_chars;
    for (at, word) in words.enumerate() {
        for c in (at > 0).then_some(' ').into_iter().chain(word.chars()) {
            if left == 0 {
                line.push('…');
                return line;
            }
            line.push(c);
            left -= 1;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn lines() {
        for (text, expected) in [
            ("denied", "denied"),
            (" two\r\n 2\t", "two 2"),
            ("\u{1b}[3mr\u{202e}x\0", "[3mr x"),
            ("0123456789", "01234567…"),
            ("0123456 89", "0123456 …"),
            ("", ""),
        ] {
            assert_eq!(one_line(text, 8), expected, "{text:?}");
        }
        assert_eq!(one_line("\u{1b}\n", 8), "");
    }
}
