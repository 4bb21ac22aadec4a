//! The task list: tasks by slot and generation, real wakers, bounded work per turn. One thread, no I/O in here.
//!
//! A wake marks its task once, however often it is called. `run` polls the marked tasks in the order they were marked; a
//! task that has used up its share of a turn says `Again` and comes to the back of the next turn's queue.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

use super::sys::Readiness;
use super::wheel::Wheel;

/// What a task says after it was polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It sleeps until it is woken.
    Wait,
    /// It has had its share of this turn and wants to go on in the next.
    Again,
    /// It is over.
    Done,
}

/// One connection. Everything takes `&self`: a task may be looked at while another is polled.
pub trait Task {
    fn poll(&self, cx: &mut Context<'_>, exec: &Exec) -> Step;
    /// Whether `poll` goes on until nothing moves any more, whoever it wakes on the way.
    fn settles(&self) -> bool {
        false
    }
    /// Put these bytes into the body that it is sending, now. False: it cannot, and has taken none of them.
    fn write(&self, _: &[u8]) -> bool {
        false
    }
    /// What epoll said; the task is polled afterwards.
    fn event(&self, ready: Readiness);
    /// By when it wants to be called, in milliseconds of the clock; `NEVER` if nothing is awaited. Asked after each poll.
    fn due(&self, _: &Clock) -> u64 {
        NEVER
    }
    /// That time has come; the task is polled afterwards.
    fn expire(&self) {}
    /// No new work after what is under way; the task is polled afterwards.
    fn drain(&self) {}
    /// Called once, when the task has left the list, also after a panic.
    fn close(&self);
}

pub const NEVER: u64 = u64::MAX;

/// The time, read at most once a turn and only if somebody asks.
pub struct Clock {
    source: fn() -> u64,
    now: Cell<u64>,
}

impl Clock {
    pub fn now_ms(&self) -> u64 {
        if self.now.get() == NEVER {
            self.now.set((self.source)());
        }
        self.now.get()
    }
}

/// Slot in the lower half, generation in the upper: a key outlives its task without ever meaning another one.
pub type Key = u64;

/// A key that no task ever has.
const NOBODY: Key = u64::MAX;

/// The queue of marked tasks. The only part that wakers touch; they must be `Send` by their type, so it is locked.
#[derive(Default)]
struct Ready {
    queue: Mutex<VecDeque<Key>>,
}

impl Ready {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Key>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct TaskWaker {
    key: Key,
    marked: AtomicBool,
    ready: Arc<Ready>,
    /// The deadline that the wheel has for this task: its earliest; later ones are found when that comes.
    armed: AtomicU64,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.marked.swap(true, Ordering::AcqRel) {
            self.ready.lock().push_back(self.key);
        }
    }
}

struct Slot {
    generation: u32,
    task: Option<Rc<dyn Task>>,
    waker: Option<Arc<TaskWaker>>,
}

pub struct Exec {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    ready: Arc<Ready>,
    batch: RefCell<VecDeque<Key>>,
    later: RefCell<Vec<Arc<TaskWaker>>>,
    live: Cell<usize>,
    turn: Cell<u64>,
    pub clock: Clock,
    wheel: RefCell<Wheel>,
    due: RefCell<Vec<(Key, u64)>>,
}

/// Rounds over the queue in one turn: a request takes two or three (head, body, answer).
const ROUNDS: usize = 8;

impl Exec {
    /// `source` tells the time in milliseconds.
    pub fn new(source: fn() -> u64) -> Self {
        let mut wheel = Wheel::default();
        wheel.advance(source(), &mut Vec::new());
        Self {
            slots: RefCell::default(),
            free: RefCell::default(),
            ready: Arc::default(),
            batch: RefCell::default(),
            later: RefCell::default(),
            live: Cell::default(),
            turn: Cell::default(),
            clock: Clock {
                source,
                now: Cell::new(NEVER),
            },
            wheel: RefCell::new(wheel),
            due: RefCell::default(),
        }
    }

    /// A place for a task; it gets its waker before it exists, because it usually needs it to be made.
    pub fn reserve(&self) -> (Key, Waker) {
        let mut slots = self.slots.borrow_mut();
        let at = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(Slot {
                generation: 0,
                task: None,
                waker: None,
            });
            slots.len() as u32 - 1
        });
        let slot = &mut slots[at as usize];
        let key = u64::from(slot.generation) << 32 | u64::from(at);
        let waker = Arc::new(TaskWaker {
            key,
            marked: AtomicBool::new(false),
            ready: Arc::clone(&self.ready),
            armed: AtomicU64::new(NEVER),
        });
        slot.waker = Some(Arc::clone(&waker));
        (key, Waker::from(waker))
    }

    pub fn insert(&self, key: Key, task: Rc<dyn Task>) {
        if let Some(slot) = self.slots.borrow_mut().get_mut(key as u32 as usize) {
            if slot.generation == (key >> 32) as u32 {
                slot.task = Some(task);
                self.live.set(self.live.get() + 1);
            }
        }
    }

    /// How many tasks there are.
    pub fn live(&self) -> usize {
        self.live.get()
    }

    fn find(&self, key: Key) -> Option<(Rc<dyn Task>, Arc<TaskWaker>)> {
        let slots = self.slots.borrow();
        let slot = slots.get(key as u32 as usize)?;
        if slot.generation != (key >> 32) as u32 {
            return None;
        }
        Some((Rc::clone(slot.task.as_ref()?), Arc::clone(slot.waker.as_ref()?)))
    }

    /// What epoll said about a task. Events for one that has gone are dropped.
    pub fn event(&self, key: Key, ready: Readiness) {
        if let Some((task, waker)) = self.find(key) {
            task.event(ready);
            waker.wake_by_ref();
        }
    }

    /// Give bytes straight to another task, see `Task::write`.
    pub fn write(&self, key: Key, data: &[u8]) -> bool {
        let task = {
            let slots = self.slots.borrow();
            let slot = slots
                .get(key as u32 as usize)
                .filter(|slot| slot.generation == (key >> 32) as u32);
            slot.and_then(|slot| slot.task.clone())
        };
        task.is_some_and(|task| task.write(data))
    }

    /// The number of this turn.
    pub fn turn(&self) -> u64 {
        self.turn.get()
    }

    /// Whether anything is marked.
    pub fn pending(&self) -> bool {
        !self.ready.lock().is_empty() || !self.later.borrow().is_empty()
    }

    /// Begin a turn: those that were over their share may go on.
    pub fn begin(&self) {
        self.clock.now.set(NEVER);
        self.turn.set(self.turn.get() + 1);
        for waker in self.later.borrow_mut().drain(..) {
            waker.wake_by_ref();
        }
    }

    /// Poll the marked tasks, and those that they mark, in a bounded number of rounds.
    pub fn run(&self) {
        for _ in 0..ROUNDS {
            let mut batch = self.batch.take();
            std::mem::swap(&mut *self.ready.lock(), &mut batch);
            if batch.is_empty() {
                self.batch.replace(batch);
                return;
            }
            for key in batch.drain(..) {
                self.poll(key);
            }
            self.batch.replace(batch);
        }
    }

    fn poll(&self, key: Key) {
        let Some((task, waker)) = self.find(key) else { return };
        // One that goes on by itself until nothing moves need not hear of what it set going.
        let settles = task.settles();
        if !settles {
            waker.marked.store(false, Ordering::Release);
        }
        let std_waker = Waker::from(Arc::clone(&waker));
        let mut cx = Context::from_waker(&std_waker);
        // A panic ends its own connection and nothing else.
        let polled = catch_unwind(AssertUnwindSafe(|| task.poll(&mut cx, self)));
        if settles {
            waker.marked.store(false, Ordering::Release);
        }
        match polled {
            Ok(Step::Wait) => self.arm(&*task, &waker),
            Ok(Step::Again) => {
                self.arm(&*task, &waker);
                self.later.borrow_mut().push(waker);
            }
            Ok(Step::Done) | Err(_) => self.remove(key),
        }
    }

    /// Let the wheel know of a deadline that is nearer than the one it has.
    fn arm(&self, task: &dyn Task, waker: &TaskWaker) {
        let due = task.due(&self.clock);
        if due < waker.armed.load(Ordering::Relaxed) {
            waker.armed.store(due, Ordering::Relaxed);
            self.wheel.borrow_mut().arm(waker.key, due);
        }
    }

    /// Have a turn at that time, though nothing may happen.
    pub fn wake_at(&self, due_ms: u64) {
        self.wheel.borrow_mut().arm(NOBODY, due_ms);
    }

    /// When `expire` should be called next.
    pub fn next_ms(&self) -> Option<u64> {
        self.wheel.borrow().next_ms()
    }

    /// Tell the tasks whose time has come.
    pub fn expire(&self) {
        let now = self.clock.now_ms();
        let mut due = self.due.take();
        self.wheel.borrow_mut().advance(now, &mut due);
        for (key, at) in due.drain(..) {
            let Some((task, waker)) = self.find(key) else { continue };
            if waker.armed.load(Ordering::Relaxed) != at {
                continue; // it has a nearer one since
            }
            waker.armed.store(NEVER, Ordering::Relaxed);
            if task.due(&self.clock) <= now {
                task.expire();
                waker.wake_by_ref();
            } else {
                self.arm(&*task, &waker);
            }
        }
        self.due.replace(due);
    }

    /// Take a task off the list and close it.
    pub fn remove(&self, key: Key) {
        let task = {
            let mut slots = self.slots.borrow_mut();
            let Some(slot) = slots.get_mut(key as u32 as usize) else {
                return;
            };
            if slot.generation != (key >> 32) as u32 {
                return;
            }
            slot.generation = slot.generation.wrapping_add(1);
            slot.waker = None;
            self.free.borrow_mut().push(key as u32);
            slot.task.take()
        };
        if let Some(task) = task {
            self.live.set(self.live.get() - 1);
            let _ = catch_unwind(AssertUnwindSafe(|| task.close()));
        }
    }

    /// Let every task end after what it has under way.
    pub fn drain(&self) {
        self.each(|task, waker| {
            task.drain();
            waker.wake_by_ref();
        });
    }

    fn each(&self, mut visit: impl FnMut(&Rc<dyn Task>, &Arc<TaskWaker>)) {
        let n = self.slots.borrow().len();
        for at in 0..n {
            let found = {
                let slots = self.slots.borrow();
                let slot = &slots[at];
                slot.task
                    .as_ref()
                    .zip(slot.waker.as_ref())
                    .map(|(t, w)| (Rc::clone(t), Arc::clone(w)))
            };
            if let Some((task, waker)) = found {
                visit(&task, &waker);
            }
        }
    }

    /// End all tasks.
    pub fn clear(&self) {
        let keys: Vec<Key> = self
            .slots
            .borrow()
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.task.is_some())
            .map(|(at, slot)| u64::from(slot.generation) << 32 | at as u64)
            .collect();
        for key in keys {
            self.remove(key);
        }
    }
}
