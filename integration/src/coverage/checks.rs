//! Compares `docs/cri-coverage.md` with the descriptor of CRI and with the sources of the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message as _;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};

use super::{ROW, TEXT, quoted};

/// The words of the second column.
const STATUSES: [&str; 5] = ["honoured", "informational", "empty", "later", "not on Linux"];
/// What is not implemented yet; each row with the status `later` names one.
const LATER: [&str; 3] = ["heckpoint", "CDI", "runtime handler"];
/// The only calls that are not implemented.
const LATER_CALLS: [&str; 3] = ["CheckpointContainer", "CheckpointPod", "RestorePod"];

/// What must have rows, and where.
#[derive(Debug, Default)]
struct Wanted {
    /// The calls below one of which it stands: those that use it.
    calls: BTreeSet<String>,
    /// Of a message its fields, of an enum its values, of a call its own name. `true` marks what only Windows has.
    names: Vec<(String, bool)>,
}

/// Calls (`## Name`), messages and enums (`### Name`) by their headings.
type All = BTreeMap<String, Wanted>;

/// Walks the descriptor from the calls to the messages that they use.
#[derive(Default)]
struct Walk<'d> {
    messages: BTreeMap<String, &'d DescriptorProto>,
    enums: BTreeMap<String, &'d EnumDescriptorProto>,
    all: All,
}

impl<'d> Walk<'d> {
    fn add(&mut self, parent: &str, messages: &'d [DescriptorProto], enums: &'d [EnumDescriptorProto]) {
        for each in enums {
            self.enums.insert(format!("{parent}{}", each.name()), each);
        }
        let is_map =
            |each: &DescriptorProto| each.options.as_ref().is_some_and(|options| options.map_entry());
        for each in messages.iter().filter(|each| !is_map(each)) {
            let name = format!("{parent}{}", each.name());
            self.add(&format!("{name}."), &each.nested_type, &each.enum_type);
            self.messages.insert(name, each);
        }
    }

    /// Notes that a call uses this message or enum, and all that its fields use.
    fn visit(&mut self, call: &str, name: &str) {
        if !self.messages.contains_key(name) && !self.enums.contains_key(name) {
            // The entry of a map.
            return;
        }
        let wanted = self.all.entry(format!("### {name}")).or_default();
        if !wanted.calls.insert(call.to_owned()) {
            return;
        }
        if let Some(each) = self.enums.get(name) {
            wanted.names = each.value.iter().map(|value| (value.name().to_owned(), false)).collect();
        }
        let Some(each) = self.messages.get(name).copied() else { return };
        let of_windows = |text: &str| text.starts_with("Windows");
        let fields = each.field.iter().map(|field| {
            let windows = of_windows(name) || of_windows(short(field.type_name()));
            (field.name().to_owned(), windows)
        });
        wanted.names = fields.collect();
        for field in each.field.iter().filter(|field| matches!(field.r#type(), Type::Message | Type::Enum)) {
            self.visit(call, short(field.type_name()));
        }
    }
}

/// The name without the package.
fn short(full: &str) -> &str {
    full.trim_start_matches('.').trim_start_matches("runtime.v1.")
}

fn wanted() -> All {
    let set = FileDescriptorSet::decode(cri_api::DESCRIPTORS).unwrap();
    let file = set.file.first().unwrap();
    let mut walk = Walk::default();
    walk.add("", &file.message_type, &file.enum_type);
    for call in file.service.iter().flat_map(|service| &service.method) {
        let name = call.name().to_owned();
        let itself = Wanted { calls: [name.clone()].into(), names: vec![(name.clone(), false)] };
        walk.all.insert(format!("## {name}"), itself);
        walk.visit(&name, short(call.input_type()));
        walk.visit(&name, short(call.output_type()));
    }
    let defined = walk.messages.keys().chain(walk.enums.keys());
    let unused: Vec<&String> =
        defined.filter(|name| !walk.all.contains_key(&format!("### {name}"))).collect();
    assert!(unused.is_empty(), "no call uses {unused:?}");
    walk.all
}

/// A heading: `## Call` or `### Message`, with the call that it stands below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heading<'t> {
    text: &'t str,
    call: &'t str,
}

/// One row, with its place.
struct Row<'t> {
    line: usize,
    heading: Heading<'t>,
    names: Vec<&'t str>,
    status: &'t str,
    text: &'t str,
    tests: Vec<&'t str>,
}

/// The headings and rows of the file; what cannot be read is reported.
fn parse<'t>(text: &'t str, problems: &mut Vec<String>) -> (Vec<Heading<'t>>, Vec<Row<'t>>) {
    let (mut headings, mut rows): (Vec<Heading<'t>>, Vec<Row<'t>>) = (Vec::new(), Vec::new());
    for (line, number) in text.lines().zip(1_usize..) {
        if let Some(call) = line.strip_prefix("## ") {
            headings.push(Heading { text: line, call });
        } else if line.starts_with("### ") {
            let call = headings.last().map_or("", |heading| heading.call);
            headings.push(Heading { text: line, call });
        } else if line.starts_with(ROW) {
            let cells: Vec<&str> = line.trim_matches([' ', '|']).split(" | ").collect();
            match (cells.as_slice(), headings.last()) {
                ([names, status, text, tests], Some(heading)) => rows.push(Row {
                    line: number,
                    heading: *heading,
                    names: quoted(names).collect(),
                    status,
                    text,
                    tests: quoted(tests).collect(),
                }),
                _ => problems
                    .push(format!("line {number}: not `| names | status | text | tests |` below a heading")),
            }
        }
    }
    (headings, rows)
}

/// All that is wrong with the file; `black_box` are the names of the black-box tests.
fn problems(text: &str, black_box: &[String], sources: &Sources) -> Vec<String> {
    let mut problems = Vec::new();
    let (headings, rows) = parse(text, &mut problems);
    let all = wanted();
    for (heading, wanted) in &all {
        match headings.iter().filter(|each| each.text == heading).collect::<Vec<_>>().as_slice() {
            [one] if wanted.calls.contains(one.call) => {}
            [one] => problems.push(format!("{}, above `{heading}`, does not use it", one.call)),
            [] => problems.push(format!("no heading `{heading}`; it is used by {:?}", wanted.calls)),
            more => problems.push(format!("{} headings `{heading}`", more.len())),
        }
        for (name, _) in &wanted.names {
            let of =
                rows.iter().filter(|row| row.heading.text == heading && row.names.contains(&name.as_str()));
            match of.count() {
                1 => {}
                0 => problems.push(format!("below `{heading}` there is no row for `{name}`")),
                count => problems.push(format!("below `{heading}` there are {count} rows for `{name}`")),
            }
        }
    }
    let surplus = headings.iter().filter(|heading| !all.contains_key(heading.text));
    problems.extend(surplus.map(|heading| format!("CRI has no `{}`", heading.text)));
    for row in &rows {
        let fields = all.get(row.heading.text).map(|wanted| wanted.names.as_slice()).unwrap_or_default();
        check(row, fields, black_box, sources, &mut |problem| {
            problems.push(format!("line {}: {problem}", row.line));
        });
    }
    problems
}

fn check(
    row: &Row<'_>,
    fields: &[(String, bool)],
    black_box: &[String],
    sources: &Sources,
    report: &mut dyn FnMut(String),
) {
    for name in &row.names {
        match fields.iter().find(|(field, _)| field == name) {
            None => report(format!("`{}` has no `{name}`", row.heading.text)),
            Some((_, windows)) if *windows != (row.status == "not on Linux") => {
                report(format!(
                    "{name}: the status `not on Linux` is for what only Windows has, and for all of it"
                ));
            }
            Some(_) => {}
        }
    }
    if !STATUSES.contains(&row.status) {
        report(format!("{:?} is none of {STATUSES:?}", row.status));
    }
    let is_call = row.heading.text.starts_with("## ");
    if is_call && (row.status == "later") != LATER_CALLS.contains(&row.heading.call) {
        report(format!("only {LATER_CALLS:?} may come later"));
    }
    if row.status == "later" && !LATER.iter().any(|thing| row.text.contains(thing)) {
        report(format!("it does not say which of {LATER:?} will bring it"));
    }
    if !row.text.ends_with('.') || row.text.len() < 8 {
        report(format!("{:?} is no sentence", row.text));
    }
    if row.tests.is_empty() {
        report("no test asserts it".to_owned());
    }
    for test in &row.tests {
        let known = match test.split_once(".rs:") {
            Some((file, name)) => sources.has(&format!("{file}.rs"), name),
            None => black_box.iter().any(|known| known == test),
        };
        if !known {
            report(format!("there is no test {test}"));
        }
    }
}

/// The source files of the workspace.
struct Sources(Vec<(PathBuf, String)>);

impl Sources {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut files = Vec::new();
        let mut open: Vec<PathBuf> =
            ["cri-api", "image", "runtime"].iter().map(|folder| root.join(folder)).collect();
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if entry.file_type().unwrap().is_dir() {
                    open.push(path);
                } else if path.extension().is_some_and(|it| it == "rs") {
                    let text = fs::read_to_string(&path).unwrap();
                    files.push((path, text));
                }
            }
        }
        Self(files)
    }

    /// Whether exactly one file ends with this path, and has a test of this name.
    fn has(&self, file: &str, name: &str) -> bool {
        let mut found = self.0.iter().filter(|(path, _)| path.ends_with(file));
        let (Some((_, text)), None) = (found.next(), found.next()) else { return false };
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            let function = line.trim_start_matches("async ").strip_prefix("fn ");
            match function.and_then(|rest| rest.strip_prefix(name)) {
                Some(rest) if rest.starts_with('(') => return is_test,
                _ if line.starts_with("#[test]") || line.starts_with("#[tokio::test") => is_test = true,
                _ if line.starts_with('#') || line.starts_with("//") => {}
                _ => is_test = false,
            }
        }
        false
    }
}

fn black_box() -> Vec<String> {
    crate::tests::all().into_iter().map(|test| test.name).collect()
}

#[test]
fn every_call_message_and_field_has_a_row_with_a_test() {
    let found = problems(TEXT, &black_box(), &Sources::read());
    assert!(found.is_empty(), "docs/cri-coverage.md:\n{}", found.join("\n"));
}

/// The check finds each kind of fault.
#[test]
fn faults_are_found() {
    let (known, sources) = (black_box(), Sources::read());
    let row = TEXT.lines().find(|line| line.starts_with("| `log_directory` ")).unwrap();
    let changed = |new: &str| problems(&TEXT.replacen(row, new, 1), &known, &sources);
    let reports = |new: &str, part: &str| {
        let found = changed(new);
        assert!(found.iter().any(|problem| problem.contains(part)), "{part:?} is not in {found:?}");
    };
    assert_eq!(changed(row), Vec::<String>::new());
    reports("", "no row for `log_directory`");
    reports(&format!("{row}\n{row}"), "2 rows for `log_directory`");
    reports(&row.replace("`log_directory`", "`log_folder`"), "has no `log_folder`");
    reports("| `log_directory` | perhaps | It is used. | `pod::life_of_a_sandbox` |", "is none of");
    reports("| `log_directory` | honoured | It is used. | - |", "no test asserts it");
    reports("| `log_directory` | honoured | It is used. | `pod::of_nobody` |", "no test pod::of_nobody");
    reports(
        "| `log_directory` | honoured | It is used. | `tests/replies.rs:of_nobody` |",
        "no test tests/replies.rs",
    );
    reports("| `log_directory` | later | It comes. | `pod::life_of_a_sandbox` |", "which of");
    reports("| `log_directory` | not on Linux | It is not. | `pod::life_of_a_sandbox` |", "only Windows");
    reports("| `log_directory` | honoured | - | `pod::life_of_a_sandbox` |", "no sentence");
    reports("| `log_directory` | honoured |", "not `| names");
    let without = TEXT.replacen("### PodSandboxConfig\n", "\n", 1);
    let found = problems(&without, &known, &sources);
    assert!(found.iter().any(|problem| problem.contains("no heading `### PodSandboxConfig`")), "{found:?}");
    let found = problems(&format!("{TEXT}\n## NoCall\n"), &known, &sources);
    assert_eq!(found.len(), 1, "{found:?}");
    // A function that is no test does not count.
    assert!(
        !sources.has("convert/tests/mod.rs", "full_pod")
            && sources.has("tests/fields.rs", "the_table_is_complete")
    );
    assert!(super::missing(&[]).len() > 50 && super::missing(&known).is_empty());
}
