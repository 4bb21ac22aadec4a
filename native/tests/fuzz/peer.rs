//! The other end of a socket, by a script.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::sync::atomic::AtomicUsize;

use _native::engine::sys::Wire;

/// A socket whose peer's bytes are a script, and then its end.
#[derive(Default)]
pub struct Peer {
    pub input: RefCell<VecDeque<Vec<u8>>>,
    pub output: RefCell<Vec<u8>>,
    /// Every other call blocks.
    pub blocks: Cell<bool>,
    pub turn: Cell<bool>,
    /// It has had all, and its end.
    pub over: Cell<bool>,
}

pub struct Line(pub Rc<Peer>);

impl Line {
    fn block(&self) -> io::Result<()> {
        if self.0.blocks.get() && !self.0.turn.replace(!self.0.turn.get()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }
}

impl Wire for Line {
    fn recv(&self, buf: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        self.block()?;
        let mut input = self.0.input.borrow_mut();
        let Some(mut piece) = input.pop_front() else {
            self.0.over.set(true);
            return Ok(0);
        };
        let n = piece.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(&piece) {
            to.write(*from);
        }
        if n < piece.len() {
            input.push_front(piece.split_off(n));
        }
        Ok(n)
    }
    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.block()?;
        bufs.iter()
            .for_each(|b| self.0.output.borrow_mut().extend_from_slice(b));
        Ok(bufs.iter().map(|b| b.len()).sum())
    }
    fn shutdown(&self) {}
    fn reset(&self) {}
}

/// Panics of tasks are caught by the executor: this counts them.
pub static PANICS: AtomicUsize = AtomicUsize::new(0);
