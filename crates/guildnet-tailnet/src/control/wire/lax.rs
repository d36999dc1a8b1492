//! Reading JSON in parts: what can't be read is left out and counted, and what is around it is read all the same.
//!
//! A part is found first and understood then, so its mistakes can't spoil what comes after it. No error's text is kept: it would
//! quote the server.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

/// A part that may be absent, `null` or unreadable.
pub(super) struct Lax<T> {
    value: Option<T>,
    bad: bool,
}

impl<T> Default for Lax<T> {
    fn default() -> Self {
        Self { value: None, bad: false }
    }
}

impl<T> Lax<T> {
    pub(super) const fn get(&self) -> Option<&T> {
        self.value.as_ref()
    }

    /// Whether it was there and could not be read.
    pub(super) const fn is_bad(&self) -> bool {
        self.bad
    }

    /// The value; counts it if it is bad.
    pub(super) fn take(self, bad: &mut usize) -> Option<T> {
        *bad += usize::from(self.bad);
        self.value
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Lax<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&RawValue>::deserialize(deserializer)?.get();
        Ok(match serde_json::from_str(text) {
            Ok(value) => Self { value, bad: false },
            Err(_) => Self { value: None, bad: true },
        })
    }
}

/// A list without its bad entries.
pub(super) struct List<T> {
    read: Vec<T>,
    bad: usize,
}

impl<T> Lax<List<T>> {
    /// The entries that could be read; counts the others.
    pub(super) fn list(self, bad: &mut usize) -> Option<Vec<T>> {
        let List { read, bad: of } = self.take(bad)?;
        *bad += of;
        Some(read)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Entries(PhantomData))
    }
}

struct Entries<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> Visitor<'de> for Entries<T> {
    type Value = List<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<List<T>, A::Error> {
        let mut list = List { read: Vec::new(), bad: 0 };
        while let Some(raw) = entries.next_element::<&RawValue>()? {
            match serde_json::from_str(raw.get()) {
                Ok(entry) => list.read.push(entry),
                Err(_) => list.bad += 1,
            }
        }
        Ok(list)
    }
}

/// An object of which the names are keys, without its bad pairs.
pub(super) struct Pairs<K, V>(List<(K, V)>);

impl<K, V> Lax<Pairs<K, V>> {
    /// The pairs that could be read, in the order of the text; counts the others.
    pub(super) fn pairs(self, bad: &mut usize) -> Option<Vec<(K, V)>> {
        let Pairs(List { read, bad: of }) = self.take(bad)?;
        *bad += of;
        Some(read)
    }
}

impl<'de, K: FromStr, V: DeserializeOwned> Deserialize<'de> for Pairs<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Named(PhantomData))
    }
}

struct Named<K, V>(PhantomData<(K, V)>);

impl<'de, K: FromStr, V: DeserializeOwned> Visitor<'de> for Named<K, V> {
    type Value = Pairs<K, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Pairs<K, V>, A::Error> {
        let mut list = List { read: Vec::new(), bad: 0 };
        while let Some((name, raw)) = pairs.next_entry::<String, &RawValue>()? {
            match (name.parse(), serde_json::from_str(raw.get())) {
                (Ok(key), Ok(value)) => list.read.push((key, value)),
                _ => list.bad += 1,
            }
        }
        Ok(Pairs(list))
    }
}
