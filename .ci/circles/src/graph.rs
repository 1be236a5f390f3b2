//! The graph of imports between the modules of one folder (arrows), and its cycles (circles).
//!
//! A module and the modules inside it may use each other, and so may a crate's root file and its modules. Modules side
//! by side may not, at any depth. A name that a module re-exports from inside it counts as a use of its origin.

use crate::scan::{Scan, Use};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

/// Modules side by side.
#[derive(Debug)]
pub(crate) struct Level {
    /// Folder of the crate's root file, then the modules that contain them, for example `runtime/src/pod`.
    pub(crate) name: String,
    /// Which module uses which, with the first place in the source.
    pub(crate) arrows: BTreeMap<Arrow, Use>,
}

/// (from, to)
pub(crate) type Arrow = (String, String);

/// Every level of a crate.
pub(crate) fn levels(scan: &Scan) -> Vec<Level> {
    let exports = exports(scan);
    let mut levels: BTreeMap<&[String], Level> = BTreeMap::new();
    for used in &scan.uses {
        let path = origin(scan, &exports, &used.path);
        let (from, to) = (&used.from[..], &path[..depth(scan, path)]);
        let same = from.iter().zip(to).take_while(|(a, b)| a == b).count();
        let (folder, beside) = from.split_at(same);
        if let (Some(from), Some(to)) = (beside.first(), to.get(same)) {
            let level = levels.entry(folder).or_insert_with(|| Level {
                name: folder
                    .iter()
                    .fold(scan.folder.clone(), |path, part| path.join(part))
                    .display()
                    .to_string(),
                arrows: BTreeMap::new(),
            });
            level.arrows.entry((from.clone(), to.clone())).or_insert_with(|| used.clone());
        }
    }
    levels.into_values().collect()
}

/// How many names of `path` are modules; the rest is an item of the last.
fn depth(scan: &Scan, path: &[String]) -> usize {
    (0..=path.len()).rev().find(|end| scan.modules.contains(&path[..*end])).unwrap_or(0)
}

/// Items that a module takes from inside it: by module and name, the path of their origin.
fn exports(scan: &Scan) -> BTreeMap<Vec<String>, &[String]> {
    let mut exports = BTreeMap::new();
    for Use { from, path, .. } in &scan.uses {
        let depth = depth(scan, path);
        if depth > from.len() && path.starts_with(from) && depth + 1 == path.len() {
            let name = from.iter().chain(path.last()).cloned().collect();
            exports.entry(name).or_insert(&path[..]);
        }
    }
    exports
}

/// The path with re-exports followed. Each leads deeper, so this ends.
fn origin<'a>(
    scan: &Scan,
    exports: &BTreeMap<Vec<String>, &'a [String]>,
    mut path: &'a [String],
) -> &'a [String] {
    while let Some(deeper) = path.get(..=depth(scan, path)).and_then(|name| exports.get(name)) {
        path = deeper;
    }
    path
}

/// Every circle, as a text for users.
pub(crate) fn described(levels: &[Level]) -> Vec<String> {
    let describe = |level: &Level| {
        let circles = circles(&level.arrows.keys().collect()).into_iter();
        circles.map(|circle| Circle { level, modules: circle }.to_string()).collect::<Vec<_>>()
    };
    levels.iter().flat_map(describe).collect()
}

/// For every arrow on a circle the shortest circle through it, each once.
fn circles(arrows: &BTreeSet<&Arrow>) -> BTreeSet<Vec<String>> {
    let mut circles = BTreeSet::new();
    for (from, to) in arrows {
        if let Some(mut circle) = shortest_path(arrows, to, from) {
            let first = circle.iter().enumerate().min_by_key(|(_, name)| *name).map_or(0, |(at, _)| at);
            circle.rotate_left(first);
            circles.insert(circle);
        }
    }
    circles
}

/// The shortest path along the arrows, both ends included.
fn shortest_path(arrows: &BTreeSet<&Arrow>, from: &str, to: &str) -> Option<Vec<String>> {
    let mut came: BTreeMap<&str, &str> = BTreeMap::new();
    let mut next = VecDeque::from([from]);
    while let Some(at) = next.pop_front() {
        if at == to {
            let mut path = vec![at.to_owned()];
            let mut at = at;
            while at != from {
                at = came[at];
                path.push(at.to_owned());
            }
            path.reverse();
            return Some(path);
        }
        for (_, end) in arrows.iter().filter(|(start, _)| start == at) {
            if end != from && !came.contains_key(end.as_str()) {
                came.insert(end, at);
                next.push_back(end);
            }
        }
    }
    None
}

struct Circle<'a> {
    level: &'a Level,
    modules: Vec<String>,
}

impl fmt::Display for Circle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { level, modules } = self;
        write!(f, "{}: {} use each other:", level.name, modules.join(", "))?;
        for (at, from) in modules.iter().enumerate() {
            let to = &modules[(at + 1) % modules.len()];
            if let Some(used) = level.arrows.get(&(from.clone(), to.clone())) {
                let place = used.file.display();
                write!(f, "\n  {place}:{}: {from} -> {to} (crate::{})", used.line, used.path.join("::"))?;
            }
        }
        Ok(())
    }
}
