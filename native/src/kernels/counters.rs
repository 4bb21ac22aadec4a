//! Numbers that the processes of one host share: rows of 64-bit cells in shared memory, each changed by single atomic
//! operations. A process that is killed in the middle of anything leaves every cell either as it was or as it was to be.
//!
//! Layout: `ROWS` rows of 32 words. The first word of a row is its key, 0 while nobody has it; the others are its cells.

use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

const ROWS: usize = 4096;
const WORDS: usize = 32;
const SIZE: usize = ROWS * WORDS * 8;

/// Counters in shared memory, by rows of 31 cells. `fd` is a memfd that is sealed against shrinking; it is made long
/// enough. Operations of the native class are whole between processes; those of the twin within one process only.
///
/// A cell is a signed number of 64 bits (`get`, `add`, `compare`), or part of a window: `bump` counts in cell
/// `first + stamp % cells` what falls into this stamp (a second, say) and forgets what an older stamp left there;
/// `recent` is the sum over the last `cells` stamps. Counts in windows end at 2**32 - 1, stamps begin anew there.
/// Raises ValueError for a row or cell that is not there.
#[pyclass(frozen)]
pub struct Counters {
    base: NonNull<AtomicU64>,
}

// SAFETY: the memory is only ever touched through atomics, stays mapped until `drop`, and is bound to no thread.
unsafe impl Send for Counters {}
// SAFETY: as above.
unsafe impl Sync for Counters {}

impl Drop for Counters {
    fn drop(&mut self) {
        // SAFETY: this is what `new` mapped, and nobody has a reference into it any more: those end with `&self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), SIZE) };
    }
}

/// Count and stamp as one word.
fn word(stamp: u64, count: u64) -> u64 {
    stamp << 32 | count
}

impl Counters {
    fn map(fd: RawFd) -> std::io::Result<Option<Self>> {
        // SAFETY: no pointers; a wrong `fd` is an error.
        let seals = unsafe { libc::fcntl(fd, libc::F_GET_SEALS) };
        if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
            return Ok(None);
        }
        // SAFETY: all zeroes is a valid `stat`, which the call only writes to.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: `stat` outlives the call.
        if unsafe { libc::fstat(fd, &mut stat) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: no pointers.
        if (stat.st_size as usize) < SIZE && unsafe { libc::ftruncate(fd, SIZE as libc::off_t) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choosing. The file is at least SIZE long and sealed against
        // shrinking, so that no access to it can ever fault.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), SIZE, access, libc::MAP_SHARED, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(NonNull::new(base.cast()).map(|base| Self { base }))
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: page-aligned memory of SIZE bytes, mapped as long as `self` lives, in which every bit pattern is valid;
        // other processes change it, but only by atomic operations.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), ROWS * WORDS) }
    }

    fn cell(&self, row: isize, cell: isize) -> PyResult<&AtomicU64> {
        Ok(&self.window(row, cell, 1)?[0])
    }

    fn window(&self, row: isize, first: isize, cells: isize) -> PyResult<&[AtomicU64]> {
        let number = |n| usize::try_from(n).ok();
        let place = (|| {
            let (row, first, cells) = (number(row)?, number(first)?, number(cells)?);
            let room = row < ROWS && cells > 0 && first.saturating_add(cells) < WORDS;
            let at = row.wrapping_mul(WORDS).wrapping_add(1 + first);
            room.then_some(at..at.wrapping_add(cells))
        })();
        let place = place.ok_or_else(|| PyValueError::new_err("no such row or cell"))?;
        Ok(&self.words()[place])
    }
}

#[pymethods]
impl Counters {
    #[new]
    fn new(fd: i32) -> PyResult<Self> {
        match Self::map(fd) {
            Ok(Some(counters)) => Ok(counters),
            Ok(None) => Err(PyValueError::new_err("not a memfd that is sealed against shrinking")),
            Err(e) => Err(PyOSError::new_err(e.to_string())),
        }
    }

    /// The row of this key (not 0), for whoever asks first and for all after that; -1 when all rows are taken.
    fn row(&self, key: u64) -> PyResult<isize> {
        if key == 0 {
            return Err(PyValueError::new_err("0 is not a key"));
        }
        let words = self.words();
        for step in 0..ROWS {
            let row = (key as usize).wrapping_add(step) % ROWS;
            match words[row * WORDS].compare_exchange(0, key, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(row as isize),
                Err(other) if other == key => return Ok(row as isize),
                Err(_) => {}
            }
        }
        Ok(-1)
    }

    fn get(&self, row: isize, cell: isize) -> PyResult<i64> {
        Ok(self.cell(row, cell)?.load(Ordering::Acquire) as i64)
    }

    /// What it is afterwards.
    fn add(&self, row: isize, cell: isize, n: i64) -> PyResult<i64> {
        let before = self.cell(row, cell)?.fetch_add(n as u64, Ordering::AcqRel);
        Ok(before.wrapping_add(n as u64) as i64)
    }

    /// Make it `new` if it is `old`; whether it was.
    fn compare(&self, row: isize, cell: isize, old: i64, new: i64) -> PyResult<bool> {
        let cell = self.cell(row, cell)?;
        let result = cell.compare_exchange(old as u64, new as u64, Ordering::AcqRel, Ordering::Acquire);
        Ok(result.is_ok())
    }

    /// What was counted with this stamp so far, `n` included; 0 if a newer one has its cell.
    fn bump(&self, row: isize, first: isize, cells: isize, stamp: u32, n: u32) -> PyResult<u64> {
        let window = self.window(row, first, cells)?;
        let cell = &window[stamp as usize % window.len()];
        let stamp = u64::from(stamp);
        let mut old = cell.load(Ordering::Acquire);
        loop {
            let count = match (old >> 32).cmp(&stamp) {
                std::cmp::Ordering::Greater => return Ok(0),
                std::cmp::Ordering::Equal => old & 0xffff_ffff,
                std::cmp::Ordering::Less => 0,
            };
            let count = (count + u64::from(n)).min(0xffff_ffff);
            match cell.compare_exchange_weak(old, word(stamp, count), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(count),
                Err(now) => old = now,
            }
        }
    }

    /// What was counted with this stamp and those before it, `cells` in all.
    fn recent(&self, row: isize, first: isize, cells: isize, stamp: u32) -> PyResult<u64> {
        let words = self
            .window(row, first, cells)?
            .iter()
            .map(|c| c.load(Ordering::Acquire));
        let oldest = (u64::from(stamp) + 1).saturating_sub(cells as u64);
        let counted = words.filter(|w| (oldest..=u64::from(stamp)).contains(&(w >> 32)));
        Ok(counted.map(|w| w & 0xffff_ffff).sum())
    }
}
