//! What a text means, as far as a semantic cache needs it: `Lexicon` reads a text once into a `Said`, and a `Verifier`
//! judges whether the answer to one text is right for another.

mod lists;
mod pairs;
mod signs;
mod tables;
mod texts;
mod trees;
mod word;
mod words;

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use pairs::{features, is_refused, NAMES};
use tables::Tables;
use texts::Text;
use trees::{Forest, Source, SHORT};

/// A text read once, made by `Lexicon.parse` alone.
#[pyclass(frozen)]
pub struct Said {
    text: Text,
}

#[pymethods]
impl Said {
    /// 256 float32, little endian, of unit norm; zeros when no token is known. Made anew each time, not kept.
    #[getter]
    fn vector<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let vector = self.text.tables.vector(&self.text.ids);
        let mut bytes = [0; 4 * tables::DIMS];
        bytes
            .chunks_exact_mut(4)
            .zip(vector)
            .for_each(|(to, value)| to.copy_from_slice(&value.to_le_bytes()));
        PyBytes::new(py, &bytes)
    }

    /// How many of its words carry content: they are no function words and no way of asking.
    #[getter]
    fn content(&self) -> u32 {
        self.text.content
    }

    /// WordPiece tokens with [CLS] and [SEP]; over 512 means that the text was cut.
    #[getter]
    fn tokens(&self) -> u32 {
        self.text.tokens
    }

    /// The WordPiece ids without [CLS] and [SEP], at most 510.
    fn ids(&self) -> Vec<u16> {
        self.text.ids.to_vec()
    }
}

/// The vocabulary, the static table and the word lists of a lexicon file. Raises ValueError when `data` is not one.
#[pyclass(frozen)]
pub struct Lexicon {
    tables: Arc<Tables>,
}

#[pymethods]
impl Lexicon {
    #[new]
    fn new(data: &[u8]) -> PyResult<Self> {
        let tables = Tables::read(data).map_err(PyValueError::new_err)?;
        Ok(Self {
            tables: Arc::new(tables),
        })
    }

    /// Reads a text: of its first 8192 characters what makes up 510 tokens, the rest is not looked at. Raises
    /// UnicodeEncodeError for half a surrogate pair.
    fn parse(&self, text: &str) -> Said {
        Said {
            text: Text::read(&self.tables, text),
        }
    }
}

/// One profile of the judge over pairs. Raises ValueError when `data` is not a verifier file for these features.
#[pyclass(frozen)]
pub struct Verifier {
    vetoes: bool,
    version: String,
    shallow: Forest,
    deep: Forest,
}

impl Verifier {
    fn read(data: &[u8]) -> Result<Self, &'static str> {
        let mut source = Source(data);
        if source.bytes(8) != Some(b"TNVER002") {
            return Err("not a verifier file");
        }
        let mut next = || source.short().ok_or(SHORT);
        let (numbers, flags, length) = (next()?, next()?, next()?);
        if usize::from(numbers) != NAMES.len() {
            return Err("a verifier file for other features");
        }
        let version = source
            .bytes(usize::from(length))
            .and_then(|name| std::str::from_utf8(name).ok())
            .ok_or(SHORT)?;
        let (shallow, deep) = (Forest::read(&mut source)?, Forest::read(&mut source)?);
        if !source.0.is_empty() {
            return Err("a verifier file of another length");
        }
        Ok(Self {
            vetoes: flags & 1 != 0,
            version: version.to_string(),
            shallow,
            deep,
        })
    }
}

#[pymethods]
impl Verifier {
    #[new]
    fn new(data: &[u8]) -> PyResult<Self> {
        Self::read(data).map_err(PyValueError::new_err)
    }

    #[getter]
    fn version(&self) -> &str {
        &self.version
    }

    /// The probability in 0..1 that the answer to `kept` is right for `new`. `cosine` is that of their vectors, `deep`
    /// that of the transformer, None without it. The strict profile gives 0 for a pair that differs in a number, date,
    /// unit, negation, opposite or code, however alike the rest is.
    #[pyo3(signature = (new, kept, cosine, deep=None))]
    fn score(&self, new: &Said, kept: &Said, cosine: f64, deep: Option<f64>) -> f64 {
        let numbers = features(&new.text, &kept.text, cosine, deep.unwrap_or(0.0));
        if self.vetoes && is_refused(&numbers) {
            return 0.0;
        }
        (if deep.is_some() { &self.deep } else { &self.shallow }).score(&numbers)
    }

    /// The score from which on answers may be served so that at most `rate` of all requests get a wrong one. Between two
    /// rates it was chosen for, that of the lower one; under the lowest 2, which no score reaches.
    fn threshold(&self, rate: f64, deep: bool) -> f64 {
        (if deep { &self.deep } else { &self.shallow }).chosen(rate).threshold
    }

    /// The score without the transformer under which asking it is not worth it at this rate; 2 when it never is.
    fn low(&self, rate: f64) -> f64 {
        self.shallow.chosen(rate).low
    }

    /// The score without the transformer from which on it need not be asked: `threshold(rate, True)` was chosen for
    /// requests that are served from either of the two. Stricter than `threshold(rate, False)`, which stands alone.
    fn sure(&self, rate: f64) -> f64 {
        self.shallow.chosen(rate).sure
    }

    /// The numbers of a pair by name, without that of the transformer.
    fn explain<'py>(&self, py: Python<'py>, new: &Said, kept: &Said, cosine: f64) -> PyResult<Bound<'py, PyDict>> {
        let out = PyDict::new(py);
        for (name, number) in NAMES.iter().zip(features(&new.text, &kept.text, cosine, 0.0)) {
            if *name != "deep" {
                out.set_item(name, number)?;
            }
        }
        Ok(out)
    }
}
