//! Who presents a key: found by its digest.

use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ring::digest::{digest, SHA256};

type Row = ([u8; 32], Py<PyAny>);

/// Finds what belongs to a key. `KeyTable(entries).find(presented)`: `entries` are pairs of a key's SHA-256 and whatever
/// stands for its holder; None where no key has the digest of what was presented.
///
/// The time of the look-up says nothing about the keys, because nobody can steer a digest; whole digests are compared
/// in constant time. The keys themselves are kept nowhere.
#[pyclass(frozen)]
pub struct KeyTable {
    /// By the first eight bytes of the digest.
    rows: HashMap<u64, Vec<Row>>,
}

fn place(digest: &[u8; 32]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |unlike, (x, y)| unlike | (x ^ y)) == 0
}

#[pymethods]
impl KeyTable {
    #[new]
    fn new(entries: Vec<Row>) -> Self {
        let mut rows: HashMap<u64, Vec<_>> = HashMap::new();
        for (digest, who) in entries {
            rows.entry(place(&digest)).or_default().push((digest, who));
        }
        Self { rows }
    }

    fn find(&self, py: Python<'_>, presented: &Bound<'_, PyBytes>) -> Option<Py<PyAny>> {
        let found = digest(&SHA256, presented.as_bytes());
        let found: &[u8; 32] = found.as_ref().try_into().ok()?;
        let rows = self.rows.get(&place(found))?;
        rows.iter()
            .rev()
            .find(|row| same(&row.0, found))
            .map(|row| row.1.clone_ref(py))
    }
}
