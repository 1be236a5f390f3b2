//! What the targets share: the seeds of their corpora, and mutations. What they check is in the crate (`image::fuzz`), as it is not
//! public.

use std::path::Path;

pub mod mutate;
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

/// Changes an input in place; returns its new size. Every other call uses `structured`. The rest, and those for which it gives
/// nothing that fits, libFuzzer does.
pub fn change(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    structured: fn(&[u8], u32) -> Option<Vec<u8>>,
) -> usize {
    let changed = (seed % 2 == 0).then(|| structured(&data[..size], seed / 2)).flatten();
    match changed.filter(|changed| !changed.is_empty() && changed.len() <= max_size) {
        Some(changed) => {
            data[..changed.len()].copy_from_slice(&changed);
            changed.len()
        }
        None => libfuzzer_sys::fuzzer_mutate(data, size, max_size),
    }
}
