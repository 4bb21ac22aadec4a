//! The lexicon file, read: vocabulary, static table, word lists. Its layout stands in the twin, `parts/tables.py`.

use super::lists::{Lists, Map};
use super::word::Word;

pub const DIMS: usize = 256;
/// Tokens of a word; so the product of two meanings fits 32 bits.
const MOST_SUMMED: usize = 8;

type Pieces = Map<Box<[u8]>, u16>;

/// Immutable.
pub struct Tables {
    /// Pieces that begin a token, and those that go on, without their `##`.
    pub heads: Pieces,
    pub tails: Pieces,
    /// Bytes of the longest piece.
    pub longest: usize,
    pub unknown: u16,
    pub idf: Box<[u8]>,
    pub lists: Lists,
    rows: Box<[u16]>,
    weights: Box<[f32]>,
    table: Box<[i8]>,
}

fn take<'a>(data: &mut &'a [u8], size: usize) -> Option<&'a [u8]> {
    if size > data.len() {
        return None;
    }
    let (part, rest) = data.split_at(size);
    *data = rest;
    Some(part)
}

impl Tables {
    pub fn read(data: &[u8]) -> Result<Self, &'static str> {
        if data.len() < 36 || &data[..8] != b"TNLEX002" {
            return Err("not a lexicon file");
        }
        let head: Vec<usize> = data[8..36]
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)
            .collect();
        let &[tokens, dims, rows, vocabulary, spelt, classes, asked] = &head[..] else {
            return Err("not a lexicon file");
        };
        let mut rest = &data[36..];
        let sizes = [
            vocabulary,
            tokens,
            2 * tokens,
            4 * rows,
            rows * DIMS,
            spelt,
            classes,
            asked,
        ];
        let parts: Option<Vec<&[u8]>> = sizes.iter().map(|&size| take(&mut rest, size)).collect();
        let Some(parts) = parts.filter(|_| rest.is_empty() && dims == DIMS) else {
            return Err("a lexicon file of another length");
        };
        let text = |i: usize| std::str::from_utf8(parts[i]).map_err(|_| "a lexicon file without its words");
        let names: Vec<&str> = text(0)?.split('\n').collect();
        let lists = [text(5)?, text(6)?, text(7)?];
        if names.len() != tokens || tokens > 1 << 16 {
            return Err("a lexicon file of another vocabulary");
        }
        let (mut heads, mut tails) = (Pieces::default(), Pieces::default());
        let mut longest = 1;
        for (i, name) in names.iter().enumerate() {
            let (known, piece) = name
                .strip_prefix("##")
                .map_or((&mut heads, *name), |piece| (&mut tails, piece));
            known.insert(piece.as_bytes().into(), i as u16);
            longest = longest.max(piece.len());
        }
        let places: Box<[u16]> = parts[2]
            .chunks_exact(2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
            .collect();
        let unknown = heads.get(&b"[UNK]"[..]).copied();
        let Some(unknown) = unknown.filter(|_| places.iter().all(|&row| usize::from(row) < rows)) else {
            return Err("a lexicon file whose rows are not there");
        };
        Ok(Self {
            heads,
            tails,
            longest,
            unknown,
            idf: parts[1].into(),
            lists: Lists::read(lists[0], lists[1], lists[2]).ok_or("a lexicon file with lists of another form")?,
            rows: places,
            weights: parts[3]
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            table: parts[4].iter().map(|&byte| byte as i8).collect(),
        })
    }

    fn row(&self, token: u16) -> Option<(f32, &[i8; DIMS])> {
        let row = usize::from(self.rows[usize::from(token)]);
        if row == 0 {
            return None;
        }
        let part = self.table[row * DIMS..(row + 1) * DIMS].first_chunk()?;
        Some((self.weights[row], part))
    }

    /// The weighted mean of the tokens' rows, of unit norm; zeros when no token has a row.
    pub fn vector(&self, ids: &[u16]) -> [f32; DIMS] {
        let mut total = [0f64; DIMS];
        for (weight, part) in ids.iter().filter_map(|&token| self.row(token)) {
            let weight = f64::from(weight);
            total
                .iter_mut()
                .zip(part)
                .for_each(|(have, &value)| *have += weight * f64::from(value));
        }
        let norm = total.iter().fold(0.0, |norm, value| norm + value * value);
        let norm = if norm > 0.0 { norm.sqrt() } else { 1.0 };
        total.map(|value| (value / norm) as f32)
    }

    /// The sum of the table's rows over a word's first tokens.
    pub fn meaning(&self, ids: &[u16], word: &Word) -> Meaning {
        let mut sum = [0i16; DIMS];
        let first = usize::from(word.first);
        let count = usize::from(word.count).min(MOST_SUMMED);
        for (_, part) in ids[first..first + count].iter().filter_map(|&token| self.row(token)) {
            sum.iter_mut()
                .zip(part)
                .for_each(|(have, &value)| *have += i16::from(value));
        }
        Meaning {
            norm: product(&sum, &sum),
            sum,
        }
    }
}

/// What a word means by itself.
pub struct Meaning {
    sum: [i16; DIMS],
    norm: i32,
}

fn product(one: &[i16; DIMS], other: &[i16; DIMS]) -> i32 {
    one.iter().zip(other).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
}

impl Meaning {
    /// The cosine of two meanings, 0 when one has none.
    pub fn likeness(&self, other: &Self) -> f64 {
        let norms = f64::from(self.norm) * f64::from(other.norm);
        if norms == 0.0 {
            return 0.0;
        }
        f64::from(product(&self.sum, &other.sum)) / norms.sqrt()
    }
}
