//! JSON as Go's `encoding/json` reads it, because the programs that write images, and those that read them, are in Go:
//! names of members in any case, `null` as absent, unknown members ignored, of equal names the last.
//!
//! Values are read into what is there, as in Go: of an object that occurs twice, the second changes the members that it
//! has. Different from Go: whole numbers may be written as `1.0` or `1e3`, and a list that occurs twice is replaced.
//!
//! Nothing is kept of what is not asked for, and lists and objects have at most [`MAX_ITEMS`] elements, so that a
//! document of some megabytes cannot become a multiple of that in memory.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

/// Maximum depth of nested lists and objects, as in Go.
const MAX_DEPTH: usize = 10_000;
/// Maximum number of elements of a list, or of members of an object with any names. What containers use (arguments,
/// variables, layers) is limited to less by the kernel.
pub(super) const MAX_ITEMS: usize = 16_384;

/// A value that can be read from JSON.
pub(super) trait Read: Default {
    /// Reads into this value, which keeps what the JSON does not mention.
    fn read<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error>;
}

/// Reads a document. The error says at which line and column it is wrong.
pub(super) fn parse<T: Read>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    if depth(bytes) > MAX_DEPTH {
        return Err(Error::custom(format_args!("it is nested more than {MAX_DEPTH} levels deep")));
    }
    // Go replaces what is not UTF-8.
    let text = String::from_utf8_lossy(bytes);
    let mut value = T::default();
    let mut from = serde_json::Deserializer::from_str(&text);
    value.read(&mut from)?;
    from.end()?;
    Ok(value)
}

/// The deepest level of nested lists and objects. Any number if the text is no JSON.
fn depth(bytes: &[u8]) -> usize {
    let (mut level, mut deepest) = (0_usize, 0);
    let (mut quoted, mut escaped) = (false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => {
                level += 1;
                deepest = deepest.max(level);
            }
            b']' | b'}' if !quoted => level = level.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Whether Go takes `given` for the member `name`, which is ASCII: equal but for case, by Unicode's simple folding.
pub(super) fn names(given: &str, name: &str) -> bool {
    let fold = |letter: char| match letter {
        // The long s and the sign for kelvin are the only other letters that fold to ASCII.
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    };
    given.chars().map(fold).eq(name.chars().map(fold))
}

/// Reads into a value, as serde's seed.
pub(super) struct Into<'a, T>(pub(super) &'a mut T);

impl<'de, T: Read> DeserializeSeed<'de> for Into<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        self.0.read(from)
    }
}

/// Defines a struct whose fields are members of an object: `field: Type = "member"`. Other members are ignored.
macro_rules! object {
    ($(#[$about:meta])* struct $name:ident { $($(#[$field_about:meta])* $field:ident: $type:ty = $member:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Default)]
        struct $name {
            $($(#[$field_about])* $field: $type,)*
        }

        impl $crate::manifest::json::Object for $name {
            #[cfg(test)]
            const MEMBERS: &'static [&'static str] = &[$($member),*];

            fn member<'de, A: serde::de::MapAccess<'de>>(&mut self, name: &str, from: &mut A) -> Result<bool, A::Error> {
                $(
                    if $crate::manifest::json::names(name, $member) {
                        from.next_value_seed($crate::manifest::json::Into(&mut self.$field))?;
                        return Ok(true);
                    }
                )*
                Ok(false)
            }
        }

        impl $crate::manifest::json::Read for $name {
            fn read<'de, D: serde::Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
                $crate::manifest::json::read_object(self, from)
            }
        }
    };
}
pub(super) use object;

/// What the macro [`object!`] implements.
pub(super) trait Object {
    /// Names of the members that are read.
    #[cfg(test)]
    const MEMBERS: &'static [&'static str];

    /// Reads the value of the member `name`, if it is one of them.
    fn member<'de, A: MapAccess<'de>>(&mut self, name: &str, from: &mut A) -> Result<bool, A::Error>;
}

/// Reads an object's members.
pub(super) fn read_object<'de, T: Object, D: Deserializer<'de>>(
    into: &mut T,
    from: D,
) -> Result<(), D::Error> {
    struct Members<'a, T>(&'a mut T);

    impl<'de, T: Object> Visitor<'de> for Members<'_, T> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_unit<E: Error>(self) -> Result<(), E> {
            Ok(())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<(), A::Error> {
            while let Some(Name(name)) = from.next_key_seed(Name::default())? {
                if !self.0.member(&name, &mut from)? {
                    from.next_value::<IgnoredAny>()?;
                }
            }
            Ok(())
        }
    }

    from.deserialize_any(Members(into))
}

/// A member's name, borrowed from the text where it has no escapes.
#[derive(Default)]
struct Name<'de>(Cow<'de, str>);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Name<'de>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Name<'de>, D::Error> {
        struct Text<'de>(PhantomData<&'de ()>);

        impl<'de> Visitor<'de> for Text<'de> {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }

        from.deserialize_str(Text(PhantomData))
    }
}

impl Read for String {
    fn read<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        struct Text<'a>(&'a mut String);

        impl Visitor<'_> for Text<'_> {
            type Value = ();

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_unit<E: Error>(self) -> Result<(), E> {
                Ok(())
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
                text.clone_into(self.0);
                Ok(())
            }
        }

        from.deserialize_any(Text(self))
    }
}

impl Read for i64 {
    fn read<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        struct Number<'a>(&'a mut i64);

        impl Visitor<'_> for Number<'_> {
            type Value = ();

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_unit<E: Error>(self) -> Result<(), E> {
                Ok(())
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<(), E> {
                *self.0 = number;
                Ok(())
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
                *self.0 = i64::try_from(number).map_err(|_| E::custom("the number is too large"))?;
                Ok(())
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
                // Up to here all whole numbers have a double.
                const EXACT: f64 = 9_007_199_254_740_992.0;
                if number.fract() != 0.0 || number.abs() > EXACT {
                    return Err(E::custom(format_args!("{number} is not a whole number")));
                }
                // The conversion is exact; text is the one without a cast.
                *self.0 = format!("{number:.0}").parse().map_err(E::custom)?;
                Ok(())
            }
        }

        from.deserialize_any(Number(self))
    }
}

/// `null` is `None`.
impl<T: Read> Read for Option<T> {
    fn read<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        struct Pointer<'a, T>(&'a mut Option<T>);

        impl<'de, T: Read> Visitor<'de> for Pointer<'_, T> {
            type Value = ();

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or null")
            }

            fn visit_unit<E: Error>(self) -> Result<(), E> {
                *self.0 = None;
                Ok(())
            }

            fn visit_none<E: Error>(self) -> Result<(), E> {
                *self.0 = None;
                Ok(())
            }

            fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
                self.0.get_or_insert_with(T::default).read(from)
            }
        }

        from.deserialize_option(Pointer(self))
    }
}

/// `null` is an empty list.
impl<T: Read> Read for Vec<T> {
    fn read<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        struct List<'a, T>(&'a mut Vec<T>);

        impl<'de, T: Read> Visitor<'de> for List<'_, T> {
            type Value = ();

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_unit<E: Error>(self) -> Result<(), E> {
                self.0.clear();
                Ok(())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<(), A::Error> {
                self.0.clear();
                loop {
                    let mut item = T::default();
                    if from.next_element_seed(Into(&mut item))?.is_none() {
                        return Ok(());
                    }
                    if self.0.len() == MAX_ITEMS {
                        return Err(A::Error::custom(format_args!(
                            "a list has more than {MAX_ITEMS} elements"
                        )));
                    }
                    self.0.push(item);
                }
            }
        }

        from.deserialize_any(List(self))
    }
}

/// An object with any names, which are not folded. `null` is an empty one.
impl<T: Read> Read for BTreeMap<String, T> {
    fn read<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        struct Map<'a, T>(&'a mut BTreeMap<String, T>);

        impl<'de, T: Read> Visitor<'de> for Map<'_, T> {
            type Value = ();

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_unit<E: Error>(self) -> Result<(), E> {
                self.0.clear();
                Ok(())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<(), A::Error> {
                while let Some(Name(name)) = from.next_key_seed(Name::default())? {
                    let mut value = T::default();
                    from.next_value_seed(Into(&mut value))?;
                    self.0.insert(name.into_owned(), value);
                    if self.0.len() > MAX_ITEMS {
                        return Err(A::Error::custom(format_args!(
                            "an object has more than {MAX_ITEMS} members"
                        )));
                    }
                }
                Ok(())
            }
        }

        from.deserialize_any(Map(self))
    }
}

/// Whether there is a value other than null. What it is does not matter.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Present(pub(super) bool);

impl Read for Present {
    fn read<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = bool;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E: Error>(self) -> Result<bool, E> {
                Ok(false)
            }

            fn visit_none<E: Error>(self) -> Result<bool, E> {
                Ok(false)
            }

            fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
                serde::Deserialize::deserialize(from).map(|IgnoredAny| true)
            }
        }

        self.0 = from.deserialize_option(Any)?;
        Ok(())
    }
}

/// Words of a command line: a list, or one word, as Docker's own type for them reads it.
#[derive(Debug, Default)]
pub(super) struct Words(pub(super) Vec<String>);

impl Read for Words {
    fn read<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        struct Either<'a>(&'a mut Vec<String>);

        impl<'de> Visitor<'de> for Either<'_> {
            type Value = ();

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of strings, or a string")
            }

            fn visit_unit<E: Error>(self) -> Result<(), E> {
                self.0.clear();
                Ok(())
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<(), E> {
                *self.0 = vec![word.to_owned()];
                Ok(())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, from: A) -> Result<(), A::Error> {
                self.0.read(serde::de::value::SeqAccessDeserializer::new(from))
            }
        }

        from.deserialize_any(Either(&mut self.0))
    }
}
