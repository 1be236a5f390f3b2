//! Decompresses zstd streams (RFC 8878) of several frames, and bounds the memory of all decoders together.
//!
//! A decoder keeps as much of what it has made as the frame's window states, up to 128 MiB. RFC 8878 asks decoders for 8 MiB
//! and encoders not to need more, so that much every transfer may have, and their number is limited. Larger windows share
//! one room: a frame with one waits until there is place for it. Frames with small windows never wait.
//!
//! Who waits gives back the transfer's place, and goes on without one, so that a slow layer with such a window holds up
//! only others of its kind. There are few of these; the next ones keep their places while they wait. Nobody who waits
//! for the room has what others need to leave it.

use super::ZSTD_MAGIC;
use super::gzip::Peek;
use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

/// Largest window that needs no place in the room, in bytes.
const SMALL: u64 = 8 << 20;
/// Largest window, in bytes, and its logarithm. The decoder refuses larger ones.
const LARGEST: u64 = 1 << LARGEST_LOG;
const LARGEST_LOG: u32 = 27;
/// Longest header of a frame, in bytes.
const MAX_HEADER: usize = 18;
/// How long a frame waits for its place. Those before it make progress, or their transfers are given up.
const PATIENCE: Duration = Duration::from_secs(3600);
/// How often a frame that waits looks whether its pull has been cancelled.
const LOOK: Duration = Duration::from_secs(1);
/// Maximum number of frames that wait. Each has a thread, and at most 64 transfers have a place and 16 have none.
const MAX_WAITING: usize = 80;
/// Maximum number of layers whose transfers go on without a place: they use threads and memory beside the others.
const MAX_WITHOUT_PLACE: usize = 16;

/// The memory for large windows of the whole process.
pub(super) static ROOM: Room = Room::new(LARGEST, PATIENCE);

/// Memory that large windows share, in the order of their requests.
#[derive(Debug)]
pub(super) struct Room {
    /// In bytes.
    size: u64,
    patience: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    used: u64,
    next_ticket: u64,
    waiting: VecDeque<u64>,
    without_place: usize,
}

/// One of the layers that go on without their transfer's place, until drop.
#[derive(Debug)]
struct WithoutPlace<'a>(&'a Room);

/// A part of the room, returned on drop.
#[derive(Debug)]
struct Place<'a> {
    room: &'a Room,
    bytes: u64,
}

impl Room {
    const fn new(size: u64, patience: Duration) -> Self {
        let state = State { used: 0, next_ticket: 0, waiting: VecDeque::new(), without_place: 0 };
        Self { size, patience, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Locks. Poison is ignored: no code panics while it holds the lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place of so many bytes. `on_wait` is called once if it has to wait. `is_cancelled` tells whether nobody
    /// needs the place any more.
    ///
    /// # Errors
    /// `ResourceBusy` if too many wait, if it takes too long, or if it was cancelled.
    fn take(
        &self,
        bytes: u64,
        on_wait: impl FnOnce(),
        is_cancelled: impl Fn() -> bool,
    ) -> io::Result<Place<'_>> {
        let mut state = self.state();
        if state.waiting.len() >= MAX_WAITING {
            return Err(self.busy(bytes, &format!("{MAX_WAITING} other layers wait for a place")));
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push_back(ticket);
        let must_wait =
            |state: &mut State| state.waiting.front() != Some(&ticket) || state.used + bytes > self.size;
        if must_wait(&mut state) {
            drop(state);
            on_wait();
            state = self.state();
        }
        let until = Instant::now() + self.patience;
        while must_wait(&mut state) && Instant::now() < until && !is_cancelled() {
            let waited = self.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let has_place = !must_wait(&mut state);
        state.waiting.retain(|other| *other != ticket);
        if has_place {
            state.used += bytes;
        }
        drop(state);
        // The next one is the first now.
        self.changed.notify_all();
        if has_place {
            return Ok(Place { room: self, bytes });
        }
        Err(self.busy(bytes, &format!("other layers have used them for {} s", self.patience.as_secs())))
    }

    /// Whether one more layer may go on without its transfer's place.
    fn leave_place(&self) -> Option<WithoutPlace<'_>> {
        let mut state = self.state();
        (state.without_place < MAX_WITHOUT_PLACE).then(|| {
            state.without_place += 1;
            WithoutPlace(self)
        })
    }

    fn busy(&self, bytes: u64, why: &str) -> io::Error {
        let reason = format!(
            "its zstd window has {} MiB, and of the {} MiB for large windows not enough are free: {why}: pull \
             again later, or compress it without --long and --ultra",
            bytes >> 20,
            self.size >> 20,
        );
        io::Error::new(io::ErrorKind::ResourceBusy, reason)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.room.state().used -= self.bytes;
        self.room.changed.notify_all();
    }
}

impl Drop for WithoutPlace<'_> {
    fn drop(&mut self) {
        self.0.state().without_place -= 1;
    }
}

/// Reads the content of all frames.
pub(super) struct Frames<'a, R> {
    input: &'a mut R,
    decoder: Decoder<'static>,
    in_frame: bool,
    room: &'a Room,
    /// For the window of the decoder.
    place: Option<Place<'a>>,
    /// Gives back the place of the transfer.
    give_back: &'a dyn Fn(),
    /// Once it was given back.
    without_place: Option<WithoutPlace<'a>>,
}

impl<'a, R: Peek> Frames<'a, R> {
    /// `give_back` is called once, if a frame has to wait for the room: it gives back the place of the layer's transfer.
    pub(super) fn new(input: &'a mut R, room: &'a Room, give_back: &'a dyn Fn()) -> io::Result<Self> {
        let decoder = decoder()?;
        Ok(Self { input, decoder, in_frame: false, room, place: None, give_back, without_place: None })
    }

    /// Prepares for the next frame; `false` if there is none.
    fn begin(&mut self) -> io::Result<bool> {
        let head = self.input.peek(MAX_HEADER);
        if head.is_empty() {
            return Ok(false);
        }
        // The decoder tells what is wrong with what is no frame, or with a window that is too large.
        let window = window(head).filter(|window| (SMALL + 1..=LARGEST).contains(window)).unwrap_or(0);
        let has = self.place.as_ref().map_or(0, |place| place.bytes);
        if window > has || window == 0 && has > 0 {
            // The old memory is freed before more is waited for: who waits must not have what others wait for.
            self.decoder = decoder()?;
            self.place = None;
            let (room, without_place, give_back) = (self.room, &mut self.without_place, self.give_back);
            let on_wait = || {
                if without_place.is_none() {
                    *without_place = room.leave_place();
                    if without_place.is_some() {
                        give_back();
                    }
                }
            };
            let is_cancelled = || self.input.is_cut_off();
            self.place = (window > 0).then(|| room.take(window, on_wait, is_cancelled)).transpose()?;
        } else {
            self.decoder.reinit()?;
        }
        self.in_frame = true;
        Ok(true)
    }
}

/// A decoder with the limit [`LARGEST`]. The default limit of zstd allows a window of one byte more.
fn decoder() -> io::Result<Decoder<'static>> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(LARGEST_LOG))?;
    Ok(decoder)
}

/// How many bytes the decoder keeps of a frame that begins like this: its window, or all of its content if that is
/// less. `None` if it is no frame with content.
fn window(head: &[u8]) -> Option<u64> {
    let (&descriptor, rest) = head.strip_prefix(ZSTD_MAGIC)?.split_first()?;
    let is_single_segment = descriptor & 1 << 5 != 0;
    let (window, rest) = if is_single_segment {
        (u64::MAX, rest)
    } else {
        let (&byte, rest) = rest.split_first()?;
        let base = 1u64 << (10 + (byte >> 3));
        (base + base / 8 * u64::from(byte & 7), rest)
    };
    let dictionary_id = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let rest = rest.get(dictionary_id..)?;
    let size = match descriptor >> 6 {
        0 if is_single_segment => u64::from(*rest.first()?),
        0 => return Some(window),
        1 => u64::from(u16::from_le_bytes(*rest.first_chunk()?)) + 256,
        2 => u64::from(u32::from_le_bytes(*rest.first_chunk()?)),
        _ => u64::from_le_bytes(*rest.first_chunk()?),
    };
    Some(window.min(size))
}

impl<R: Peek> Read for Frames<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while !into.is_empty() && (self.in_frame || self.begin()?) {
            let input = self.input.fill_buf()?;
            let is_end = input.is_empty();
            let (mut taken, mut made) = (InBuffer::around(input), OutBuffer::around(&mut *into));
            let hint = self.decoder.run(&mut taken, &mut made)?;
            let (taken, made) = (taken.pos(), made.pos());
            self.input.consume(taken);
            self.in_frame = hint > 0;
            if made > 0 {
                return Ok(made);
            }
            if is_end && self.in_frame {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "incomplete frame"));
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, Cursor, Write as _};
    use zstd::zstd_safe::CParameter;

    impl Peek for Cursor<Vec<u8>> {
        fn peek(&mut self, length: usize) -> &[u8] {
            let rest = self.fill_buf().unwrap();
            &rest[..rest.len().min(length)]
        }

        fn is_cut_off(&self) -> bool {
            false
        }
    }

    const NEVER: fn() -> bool = || false;
    const NOTHING: fn() = || ();

    /// A frame with this window. Like most programs that compress a stream, it does not state the size.
    fn frame(content: &[u8], window_log: u32) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.set_parameter(CParameter::WindowLog(window_log)).unwrap();
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn decoded(stream: Vec<u8>, room: &Room) -> io::Result<Vec<u8>> {
        let (mut input, mut content) = (Cursor::new(stream), Vec::new());
        Frames::new(&mut input, room, &NOTHING)?.read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn the_window_is_that_of_the_header() {
        assert_eq!(window(&frame(b"x", 23)), Some(8 << 20));
        assert_eq!(window(&frame(b"x", 27)), Some(128 << 20));
        // With a size of one, two and four bytes, all in a single segment.
        for size in [5, 255, 256, 300, 70_000] {
            let whole = zstd::bulk::compress(&vec![7; size], 1).unwrap();
            assert_eq!(window(&whole), Some(size as u64));
        }
        // Window and size, with a dictionary's number between them.
        let head = |descriptor: u8, rest: &[u8]| [ZSTD_MAGIC, &[descriptor], rest].concat();
        assert_eq!(window(&head(0b1100_0011, &[0x81, 1, 2, 3, 4, 0, 0, 16, 0, 0, 0, 0, 0])), Some(1 << 20));
        assert_eq!(window(&head(0, &[0x81])), Some(((1 << 26) / 8) * 9));
        assert_eq!(window(&head(0, &[0xff])), Some(((1 << 41) / 8) * 15));
        for head in
            [head(0, &[]), head(0xc3, &[0x81, 1, 2, 3, 4, 0]), b"\x50\x2a\x4d\x18....".to_vec(), vec![]]
        {
            assert_eq!(window(&head), None, "{head:?}");
        }
    }

    #[test]
    fn large_windows_share_the_room() {
        let room = Room::new(64 << 20, Duration::ZERO);
        let (small, large) = (frame(b"small ", 23), frame(b"large ", 26));
        let mixed = [&small[..], &large, &large, &small, &large].concat();
        assert_eq!(decoded(mixed.clone(), &room).unwrap(), b"small large large small large ");
        assert_eq!(room.state().used, 0);
        // Others have the room.
        let place = room.take(1, NOTHING, NEVER).unwrap();
        assert_eq!(decoded(small, &room).unwrap(), b"small ");
        let error = decoded(mixed, &room).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert!(error.to_string().contains("64 MiB"), "{error}");
        drop(place);
        // One larger than any room is refused and not waited for.
        let error = decoded(frame(b"x", 28), &room).unwrap_err();
        assert!(error.to_string().contains("too much memory"), "{error}");
        // Nor is one whose content is one byte larger, in a single segment with a size of four bytes.
        let size = (u32::try_from(LARGEST).unwrap() + 1).to_le_bytes();
        let single = [ZSTD_MAGIC, &[0b1010_0000], &size, &[1, 0, 0]].concat();
        assert_eq!(window(&single), Some(LARGEST + 1));
        let error = decoded(single, &room).unwrap_err();
        assert!(error.to_string().contains("too much memory"), "{error}");
        assert!(room.state().waiting.is_empty());
    }

    #[test]
    fn who_is_cancelled_waits_no_longer() {
        let room = Room::new(10, Duration::from_secs(3600));
        let _place = room.take(8, NOTHING, NEVER).unwrap();
        assert_eq!(room.take(10, NOTHING, || true).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert!(room.state().waiting.is_empty());
    }

    #[test]
    fn places_are_given_in_the_order_of_requests() {
        let room = Room::new(10, Duration::from_secs(3600));
        let place = room.take(8, NOTHING, NEVER).unwrap();
        std::thread::scope(|scope| {
            let waits = |number| {
                while room.state().waiting.len() < number {
                    std::thread::yield_now()
                }
            };
            let large = scope.spawn(|| drop(room.take(10, NOTHING, NEVER).unwrap()));
            waits(1);
            // It would fit, but then the large one might wait for ever.
            let small = scope.spawn(|| drop(room.take(1, NOTHING, NEVER).unwrap()));
            waits(2);
            assert!(!small.is_finished());
            drop(place);
            large.join().unwrap();
            small.join().unwrap();
        });
        assert_eq!(room.state().used, 0);
        room.state().waiting.extend(0..MAX_WAITING as u64);
        assert_eq!(room.take(1, NOTHING, NEVER).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    }

    #[test]
    fn who_waits_gives_its_place_back_once() {
        let room = Room::new(64 << 20, Duration::from_secs(3600));
        let given_back = std::sync::atomic::AtomicUsize::new(0);
        let count = || given_back.load(std::sync::atomic::Ordering::Relaxed);
        let give_back = || {
            given_back.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        };
        let now = || {
            let state = room.state();
            (state.without_place, state.waiting.len(), state.used)
        };
        let read = |stream: Vec<u8>| {
            let (mut input, mut content) = (Cursor::new(stream), Vec::new());
            Frames::new(&mut input, &room, &give_back).unwrap().read_to_end(&mut content).unwrap();
            content
        };
        // Small windows, between which the room is given back, and large ones.
        let stream = [frame(b"a", 26), frame(b"b", 23), frame(b"c", 26)].concat();
        assert_eq!(read(stream.clone()), b"abc");
        assert_eq!(count(), 0, "there was room");
        let place = room.take(64 << 20, NOTHING, NEVER).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| read(stream.clone()));
            while count() == 0 {
                std::thread::yield_now();
            }
            assert_eq!(now(), (1, 1, 64 << 20));
            drop(place);
            assert_eq!(waits.join().unwrap(), b"abc");
        });
        assert_eq!((count(), now()), (1, (0, 0, 0)));
        // If many have done so, one keeps its place.
        let many: Vec<_> = (0..MAX_WITHOUT_PLACE).map(|_| room.leave_place().unwrap()).collect();
        let place = room.take(64 << 20, NOTHING, NEVER).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| read(stream.clone()));
            while now().1 == 0 {
                std::thread::yield_now();
            }
            drop(place);
            assert_eq!(waits.join().unwrap(), b"abc");
        });
        assert_eq!((count(), now()), (1, (many.len(), 0, 0)));
    }
}
