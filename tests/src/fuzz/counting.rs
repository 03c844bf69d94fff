//! An allocator that counts, so that a decoder that reserves memory by what hostile bytes say is
//! found.
//!
//! Owns two counts for each thread: bytes that live, and the most that lived at once. Never changes
//! what the system's allocator does. Installed by the program `fuzz` and by tests, and by nothing
//! that ships.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counted.
#[derive(Debug)]
pub struct Counting;

#[derive(Clone, Copy)]
struct Count {
    live: isize,
    most: isize,
}

thread_local! {
    static COUNT: Cell<Count> = const { Cell::new(Count { live: 0, most: 0 }) };
}

fn count(change: isize) {
    // A thread that ends has no count any more.
    let _ended = COUNT.try_with(|cell| {
        let Count { live, most } = cell.get();
        let live = live.saturating_add(change);
        cell.set(Count { live, most: most.max(live) });
    });
}

fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

// SAFETY: every call goes to the system's allocator as it came; the counts allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(signed(bytes).saturating_sub(signed(layout.size())));
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.realloc(memory, layout, bytes) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// What `work` gives, and the most bytes that it had allocated on this thread at once.
pub fn measure<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = COUNT.with(|cell| {
        let live = cell.get().live;
        cell.set(Count { live, most: live });
        live
    });
    let given = work();
    let most = COUNT.with(Cell::get).most;
    (given, usize::try_from(most.saturating_sub(before)).unwrap_or(0))
}

/// Whether this program allocates through [`Counting`].
pub fn is_installed() -> bool {
    let (kept, most) = measure(|| vec![0_u8; 4096]);
    most >= kept.len()
}
