//! Which known name somebody meant.

/// Names further away than this are no help.
const MAX_DISTANCE: usize = 3;

/// The nearest of `known` by edit distance, unless all are too far from `given`.
pub(super) fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (distance(given, name), name))
        .filter(|(distance, name)| *distance <= MAX_DISTANCE.min(name.len() / 2))
        .min()
        .map(|(_, name)| name)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let width = b.len() + 1;
    // rows[i * width + j]: distance between the first i of a and the first j of b.
    let mut rows = vec![0; (a.len() + 1) * width];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i * width + j] = match (i, j) {
                (0, n) | (n, 0) => n,
                _ => {
                    let replaced = rows[(i - 1) * width + j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let mut best =
                        replaced.min(rows[(i - 1) * width + j] + 1).min(rows[i * width + j - 1] + 1);
                    if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                        best = best.min(rows[(i - 2) * width + j - 2] + 1);
                    }
                    best
                }
            };
        }
    }
    rows[a.len() * width + b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits() {
        for (a, b, edits) in
            [("", "abc", 3), ("level", "level", 0), ("levle", "level", 1), ("fromat", "format", 1)]
        {
            assert_eq!(distance(a, b), edits, "{a} {b}");
            assert_eq!(distance(b, a), edits, "{b} {a}");
        }
    }

    #[test]
    fn names_the_nearest_or_nothing() {
        let known = ["root", "state", "socket"];
        assert_eq!(nearest("sokcet", known), Some("socket"));
        assert_eq!(nearest("zebra-crossing", known), None);
        assert_eq!(nearest("x", known), None);
    }
}
