//! Lists of images as text.

use super::{Error, Form};
use cri_api::v1 as cri;
use indicatif::BinaryBytes;
use std::io::Write as _;

/// Digits of an id in a table, as in Docker's.
const SHORT: usize = 12;

/// The images in this form.
pub(super) fn images(images: &[cri::Image], form: Form) -> String {
    match form {
        Form::Table => table(images),
        Form::Json => json(images),
    }
}

fn json(images: &[cri::Image]) -> String {
    let objects = images.iter().map(|image| {
        serde_json::json!({
            "id": image.id,
            "tags": image.repo_tags,
            "digests": image.repo_digests,
            "size": image.size,
            "pinned": image.pinned,
        })
    });
    format!("{:#}\n", objects.collect::<serde_json::Value>())
}

/// A line for each tag; for an image without one, its first digest.
fn table(images: &[cri::Image]) -> String {
    let mut rows = vec![["IMAGE", "ID", "SIZE", "PINNED"].map(ToOwned::to_owned)];
    for image in images {
        let id = image.id.split_once(':').map_or(image.id.as_str(), |(_, hex)| hex);
        let rest = [
            id.chars().take(SHORT).collect(),
            BinaryBytes(image.size).to_string(),
            if image.pinned { "yes".to_owned() } else { String::new() },
        ];
        let names = if image.repo_tags.is_empty() {
            image.repo_digests.first().map(std::slice::from_ref).unwrap_or_default()
        } else {
            &image.repo_tags[..]
        };
        let row = |name: &str| {
            let [id, size, pinned] = rest.clone();
            [name.to_owned(), id, size, pinned]
        };
        if names.is_empty() {
            rows.push(row("<none>"));
        }
        rows.extend(names.iter().map(|name| row(name)));
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let mut text = String::new();
    for [name, id, size, pinned] in &rows {
        let line = format!("{name:0$}  {id:1$}  {size:>2$}  {pinned}", widths[0], widths[1], widths[2]);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Prints text to standard output.
pub(super) fn print(text: &str) -> Result<(), Error> {
    std::io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let image = |tags: &[&str], digests: &[&str], size, pinned| cri::Image {
            id: format!("sha256:{}", "0123456789abcdef".repeat(4)),
            repo_tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            repo_digests: digests.iter().map(|digest| (*digest).to_owned()).collect(),
            size,
            pinned,
            ..Default::default()
        };
        let all = [
            image(&["r.example/a:1", "r.example/a:2"], &["r.example/a@sha256:1"], 3 << 20, true),
            image(&[], &["r.example/b@sha256:1"], 10, false),
            image(&[], &[], 0, false),
        ];
        let text = images(&all, Form::Table);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            lines,
            [
                vec!["IMAGE", "ID", "SIZE", "PINNED"],
                vec!["r.example/a:1", "0123456789ab", "3.00", "MiB", "yes"],
                vec!["r.example/a:2", "0123456789ab", "3.00", "MiB", "yes"],
                vec!["r.example/b@sha256:1", "0123456789ab", "10", "B"],
                vec!["<none>", "0123456789ab", "0", "B"],
            ]
        );
        let value: serde_json::Value = serde_json::from_str(&images(&all, Form::Json)).unwrap();
        assert_eq!(value[0]["tags"][1], "r.example/a:2");
        assert_eq!((&value[0]["pinned"], &value[1]["size"]), (&true.into(), &10.into()));
        assert_eq!(images(&[], Form::Json), "[]\n");
    }
}
