//! The word lists of a lexicon.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::word::Word;
use super::words::fnv;

/// Words come from a trusted file, so a plain hash will do; keys that clients choose are only looked up.
#[derive(Default)]
pub struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
    }

    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
}

pub type Map<K, V> = HashMap<K, V, BuildHasherDefault<Quick>>;

/// A line of the lexicon's classes.
#[derive(Default)]
pub struct Entry {
    pub flags: u16,
    pub stands_for: Box<str>,
    /// Sets of synonyms it is in.
    pub like: Box<[u32]>,
    /// axis * 2 + side
    pub opposed: Box<[u32]>,
}

pub struct Lists {
    pub spelt: Map<Box<[u8]>, Vec<Box<str>>>,
    pub entries: Vec<Entry>,
    places: Map<Box<[u8]>, usize>,
    pub asked: Map<u32, u8>,
}

fn numbers(text: &str) -> Option<Box<[u32]>> {
    if text.is_empty() {
        return Some(Box::default());
    }
    text.split(',').map(|part| part.parse().ok()).collect()
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').filter(move |_| !text.is_empty())
}

impl Lists {
    /// None for lines of another form.
    pub fn read(spelt: &str, classes: &str, asked: &str) -> Option<Self> {
        let mut lists = Self {
            spelt: Map::default(),
            entries: vec![Entry::default()],
            places: Map::default(),
            asked: Map::default(),
        };
        for line in lines(spelt) {
            let (word, meant) = line.split_once('\t')?;
            lists
                .spelt
                .insert(word.as_bytes().into(), meant.split(' ').map(Into::into).collect());
        }
        for line in lines(classes) {
            let mut parts = line.split('\t');
            lists
                .places
                .insert(parts.next()?.as_bytes().into(), lists.entries.len());
            lists.entries.push(Entry {
                flags: parts.next()?.parse().ok()?,
                stands_for: parts.next()?.into(),
                like: numbers(parts.next()?)?,
                opposed: numbers(parts.next()?)?,
            });
        }
        for line in lines(asked) {
            let (ask, words) = line.split_once('\t')?;
            let key = words.split(' ').fold(0, |key, word| fnv(" ", fnv(word, key)));
            lists.asked.insert(key, ask.parse().ok()?);
        }
        Some(lists)
    }

    /// The entry of a stem, 0: none.
    pub fn place(&self, root: &str) -> usize {
        self.places.get(root.as_bytes()).copied().unwrap_or(0)
    }

    /// Whether two words are synonyms.
    pub fn like(&self, one: &Word, other: &Word) -> bool {
        let own = &self.entries[usize::from(one.entry)].like;
        self.entries[usize::from(other.entry)]
            .like
            .iter()
            .any(|group| own.contains(group))
    }

    /// Whether two words exclude each other.
    pub fn opposed(&self, one: &Word, other: &Word) -> bool {
        if (one.base != 0 && one.base == other.key) || (other.base != 0 && other.base == one.key) {
            return true;
        }
        let own = &self.entries[usize::from(one.entry)].opposed;
        self.entries[usize::from(other.entry)]
            .opposed
            .iter()
            .any(|side| own.contains(&(side ^ 1)))
    }
}
