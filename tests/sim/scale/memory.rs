//! A counting allocator: live bytes by what they were allocated for. Bytes are those that were asked for; what the
//! allocator adds to them is not counted.

#![allow(unsafe_code, reason = "a global allocator has no safe form")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The model itself.
    Model,
    /// The state machine of a partition: window, lanes, queues.
    Machine,
    /// Commands in the memory of delivery.
    Commands,
    /// Subscriptions.
    Subscriptions,
}

const KINDS: usize = 4;

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
    static LIVE: [Cell<i64>; KINDS] = const { [const { Cell::new(0) }; KINDS] };
}

/// Runs `work`; what it allocates counts as `kind`, whoever frees it on this thread.
pub fn within<T>(kind: Kind, work: impl FnOnce() -> T) -> T {
    let before = CURRENT.replace(kind as usize);
    let result = work();
    CURRENT.set(before);
    result
}

/// Live bytes of this thread.
pub fn live(kind: Kind) -> usize {
    let bytes = LIVE.with(|live| live[kind as usize].get());
    usize::try_from(bytes).unwrap_or(0)
}

fn count(kind: usize, bytes: i64) {
    // A thread that ends has no counters any more.
    LIVE.try_with(|live| live[kind].set(live[kind].get() + bytes))
        .ok();
}

fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// The system's allocator, with the kind in front of each block.
struct Counted;

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Room for the kind, without moving the block off its alignment.
fn pad(layout: Layout) -> usize {
    layout.align().max(16)
}

/// The block with its pad. `size` and `align` come from a valid layout.
fn whole(layout: Layout, size: usize) -> Layout {
    // SAFETY: the alignment is a power of two, and no block is within a page of the largest size.
    unsafe { Layout::from_size_align_unchecked(size + pad(layout), pad(layout)) }
}

// SAFETY: every block is one of `System`, moved by `pad`, which keeps its alignment; the kind is written into the pad.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let base = unsafe { System.alloc(whole(layout, layout.size())) };
        if base.is_null() {
            return base;
        }
        let kind = CURRENT.try_with(Cell::get).unwrap_or(0);
        count(kind, signed(layout.size()));
        unsafe {
            let block = base.add(pad(layout));
            block.sub(8).cast::<usize>().write(kind);
            block
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe {
            let kind = block.sub(8).cast::<usize>().read();
            count(kind, -signed(layout.size()));
            System.dealloc(block.sub(pad(layout)), whole(layout, layout.size()));
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        unsafe {
            let kind = block.sub(8).cast::<usize>().read();
            let base = System.realloc(
                block.sub(pad(layout)),
                whole(layout, layout.size()),
                size + pad(layout),
            );
            if base.is_null() {
                return base;
            }
            count(kind, signed(size) - signed(layout.size()));
            base.add(pad(layout))
        }
    }
}
