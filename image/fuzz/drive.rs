//! What the targets share: the seeds of their corpora. What they check is in the crate (`image::fuzz`), as it is not
//! public.

use std::path::Path;

pub mod seeds;

/// Writes seeds into the corpus, which is the folder among the program's arguments. A run that reproduces a crash has
/// none.
pub fn write(seeds: &[Vec<u8>]) {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let Some(folder) = arguments.find(|argument| Path::new(argument).is_dir()) else { return };
    for (number, seed) in seeds.iter().enumerate() {
        let path = Path::new(&folder).join(format!("seed-{number:02}"));
        std::fs::write(&path, seed).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
