//! MessagePack of plain Python values, as `msgspec` writes it: what `tally` makes records with.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyList, PyString, PyTuple};

pub type Item<'a, 'py> = Borrowed<'a, 'py, PyAny>;

/// What writes. `astuple` is msgspec's: it gives a Struct's fields.
pub struct Packer<'a, 'py> {
    pub out: &'a mut Vec<u8>,
    pub astuple: &'a Bound<'py, PyAny>,
    /// A value that comes twice, and where it was written: it is copied from there.
    pub known: Option<(usize, std::ops::Range<usize>)>,
}

impl<'py> Packer<'_, 'py> {
    /// In the shortest form; a Struct as the array of its fields. Raises TypeError for what is none, nor a tuple, list,
    /// string, whole number, bool or None. Returns what the number is, 0 or 1 for a bool, 0 for all else.
    pub fn write(&mut self, value: Item<'_, 'py>) -> PyResult<i64> {
        if value.is_exact_instance_of::<PyInt>() {
            return self.number(value);
        }
        if let Ok(text) = value.downcast_exact::<PyString>() {
            self.text(text.to_str()?.as_bytes())?;
        } else if value.is_none() {
            self.out.push(0xc0);
        } else if let Ok(truth) = value.downcast_exact::<PyBool>() {
            self.out.push(0xc2 | u8::from(truth.is_true()));
            return Ok(truth.is_true().into());
        } else if let Ok(list) = value.downcast_exact::<PyList>() {
            self.array(list.len())?;
            for one in list.iter() {
                self.write(one.as_borrowed())?;
            }
        } else if let Ok(tuple) = value.downcast_exact::<PyTuple>() {
            self.all(tuple)?;
        } else {
            match &self.known {
                Some((known, at)) if *known == value.as_ptr() as usize => self.out.extend_from_within(at.clone()),
                _ => self.all(&self.fields(&value)?)?,
            }
        }
        Ok(0)
    }

    pub fn fields(&self, one: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyTuple>> {
        Ok(self.astuple.call1((one,))?.downcast_into()?)
    }

    fn all(&mut self, tuple: &Bound<'py, PyTuple>) -> PyResult<()> {
        self.array(tuple.len())?;
        for one in tuple.iter_borrowed() {
            self.write(one)?;
        }
        Ok(())
    }

    pub fn array(&mut self, n: usize) -> PyResult<()> {
        match n {
            0..=15 => self.out.push(0x90 | n as u8),
            16..=0xffff => self.long(0xdc, &(n as u16).to_be_bytes()),
            n => self.long(0xdd, &size(n)?.to_be_bytes()),
        }
        Ok(())
    }

    fn text(&mut self, data: &[u8]) -> PyResult<()> {
        match data.len() {
            n @ 0..=31 => self.out.push(0xa0 | n as u8),
            n @ 32..=0xff => self.out.extend([0xd9, n as u8]),
            n @ 0x100..=0xffff => self.long(0xda, &(n as u16).to_be_bytes()),
            n => self.long(0xdb, &size(n)?.to_be_bytes()),
        }
        self.out.extend_from_slice(data);
        Ok(())
    }

    fn number(&mut self, value: Item<'_, '_>) -> PyResult<i64> {
        let Ok(n) = value.extract::<i64>() else {
            let n: u64 = value.extract()?;
            self.long(0xcf, &n.to_be_bytes());
            return Ok(i64::MAX);
        };
        match n {
            0..=0x7f => self.out.push(n as u8),
            0x80..=0xff => self.out.extend([0xcc, n as u8]),
            0x100..=0xffff => self.long(0xcd, &(n as u16).to_be_bytes()),
            0x1_0000..=0xffff_ffff => self.long(0xce, &(n as u32).to_be_bytes()),
            0x1_0000_0000.. => self.long(0xcf, &n.to_be_bytes()),
            -32..=-1 => self.out.push(n as u8),
            -0x80..=-33 => self.out.extend([0xd0, n as u8]),
            -0x8000..=-0x81 => self.long(0xd1, &(n as i16).to_be_bytes()),
            -0x8000_0000..=-0x8001 => self.long(0xd2, &(n as i32).to_be_bytes()),
            _ => self.long(0xd3, &n.to_be_bytes()),
        }
        Ok(n)
    }

    fn long(&mut self, kind: u8, data: &[u8]) {
        self.out.push(kind);
        self.out.extend_from_slice(data);
    }
}

pub fn size(n: usize) -> PyResult<u32> {
    u32::try_from(n).map_err(|_| PyValueError::new_err("a record is too long"))
}
