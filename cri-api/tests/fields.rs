//! Compares the descriptor that our code is generated from with the field table of CRI 1.37 (`fields.txt`):
//! every service, message, enum, field, number and type must be equal, and there must be no others.

use std::collections::BTreeMap;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// The sorted lines below each heading, in the format of `fields.txt`.
type Table = BTreeMap<String, Vec<String>>;

/// Parses the table. A heading is `kind Name`, indented by two more blanks per level; all other lines belong
/// to the heading above them.
fn expected() -> Table {
    let mut table = Table::new();
    let mut path: Vec<(&str, &str)> = Vec::new();
    let key = |path: &[(&str, &str)]| {
        let names: Vec<&str> = path.iter().map(|(_, name)| *name).collect();
        format!("{} {}", path.last().expect("a heading").0, names.join("."))
    };
    for line in include_str!("fields.txt").lines() {
        let text = line.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        path.truncate((line.len() - line.trim_start().len()) / 2);
        match text.split_once(' ') {
            Some((kind @ ("service" | "message" | "enum"), name)) => {
                path.push((kind, name));
                assert!(table.insert(key(&path), Vec::new()).is_none(), "{text} is listed twice");
            }
            _ => table.get_mut(&key(&path)).expect("the heading is known").push(text.to_owned()),
        }
    }
    table
}

/// The same table, made from the descriptor.
fn actual() -> Table {
    let set = FileDescriptorSet::decode(cri_api::DESCRIPTORS).expect("our own descriptor decodes");
    assert_eq!(set.file.len(), 1, "api.proto imports nothing");
    let file = &set.file[0];
    assert_eq!((file.package(), file.syntax()), ("runtime.v1", "proto3"));
    let mut table = Table::new();
    for service in &file.service {
        let rpcs = service.method.iter().map(|rpc| {
            assert!(!rpc.client_streaming(), "{} streams from the client", rpc.name());
            let stream = if rpc.server_streaming() { "stream " } else { "" };
            format!("{}({}) -> {stream}{}", rpc.name(), short(rpc.input_type()), short(rpc.output_type()))
        });
        table.insert(format!("service {}", service.name()), rpcs.collect());
    }
    file.enum_type.iter().for_each(|each| enumeration("", each, &mut table));
    file.message_type.iter().for_each(|each| message("", each, &mut table));
    table
}

fn enumeration(parent: &str, each: &EnumDescriptorProto, table: &mut Table) {
    assert!(each.reserved_range.is_empty() && each.reserved_name.is_empty(), "{}: reserved", each.name());
    let values = each.value.iter().map(|value| format!("{} {}", value.number(), value.name()));
    table.insert(format!("enum {parent}{}", each.name()), values.collect());
}

fn message(parent: &str, each: &DescriptorProto, table: &mut Table) {
    let name = format!("{parent}{}", each.name());
    assert!(each.oneof_decl.is_empty() && each.extension.is_empty(), "{name}: the table has no oneof");
    let maps: BTreeMap<&str, String> = each
        .nested_type
        .iter()
        .filter(|nested| nested.options.as_ref().is_some_and(|options| options.map_entry()))
        .map(|entry| {
            let part = |index: usize| type_name(&entry.field[index], &BTreeMap::new());
            (entry.name(), format!("map<{},{}>", part(0), part(1)))
        })
        .collect();
    let fields = each.field.iter().map(|field| {
        let kind = type_name(field, &maps);
        let repeated = field.label() == Label::Repeated && !kind.starts_with("map<");
        let deprecated = field.options.as_ref().is_some_and(|options| options.deprecated());
        format!(
            "{} {} {}{kind}{}",
            field.number(),
            field.name(),
            if repeated { "rep " } else { "" },
            if deprecated { " dep" } else { "" }
        )
    });
    table.insert(format!("message {name}"), fields.collect());
    let inner = format!("{name}.");
    each.enum_type.iter().for_each(|nested| enumeration(&inner, nested, table));
    each.nested_type
        .iter()
        .filter(|nested| !maps.contains_key(nested.name()))
        .for_each(|nested| message(&inner, nested, table));
}

/// The last part of a full type name; names are unique in the table.
fn short(full: &str) -> &str {
    full.rsplit('.').next().unwrap_or(full)
}

fn type_name(field: &FieldDescriptorProto, maps: &BTreeMap<&str, String>) -> String {
    let name = match field.r#type() {
        Type::String => "string",
        Type::Bytes => "bytes",
        Type::Bool => "bool",
        Type::Int32 => "int32",
        Type::Int64 => "int64",
        Type::Uint32 => "uint32",
        Type::Uint64 => "uint64",
        Type::Double => "double",
        Type::Enum | Type::Message => {
            let name = short(field.type_name());
            return maps.get(name).cloned().unwrap_or_else(|| name.to_owned());
        }
        other => panic!("{}: the table has no {other:?}", field.name()),
    };
    name.to_owned()
}

#[test]
fn descriptor_equals_the_field_table() {
    let (mut expected, mut actual) = (expected(), actual());
    for table in [&mut expected, &mut actual] {
        table.values_mut().for_each(|lines| lines.sort());
    }
    for (heading, lines) in &expected {
        assert_eq!(actual.get(heading), Some(lines), "{heading}");
    }
    let surplus: Vec<&String> = actual.keys().filter(|heading| !expected.contains_key(*heading)).collect();
    assert!(surplus.is_empty(), "not in the table: {surplus:?}");
}

#[test]
fn the_table_is_complete() {
    let table = expected();
    let rpcs = |service: &str| table[&format!("service {service}")].len();
    assert_eq!((rpcs("RuntimeService"), rpcs("ImageService")), (37, 6), "43 RPCs in all");
}
