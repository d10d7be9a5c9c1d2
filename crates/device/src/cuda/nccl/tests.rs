//! With a stub in NCCL's place: a library in C by NVIDIA's documentation, which waits where NCCL does.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use super::super::stub;
use super::*;
use crate::comm::{Meeting, Pattern, Stretch};

/// What the stub does: all that is asked; connects nobody; does not return from the first collective before an abort;
/// reports an error beside the calls; does not return from an end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Works,
    NeverConnects,
    NeverGives,
    FailsBeside,
    NeverEnds,
}

const STUB: &str = r#"
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>
enum { WORKS, NEVER_CONNECTS, NEVER_GIVES, FAILS_BESIDE, NEVER_ENDS };
typedef struct { char bytes[128]; } Id;
typedef struct { int rank; volatile int aborted; } Comm;
static volatile int mode, aborts, destroys, given;
static _Thread_local Comm *used;
void stub_mode(int m) { mode = m; aborts = destroys = given = 0; }
int stub_aborts(void) { return aborts; }
int stub_destroys(void) { return destroys; }
static Comm *make(int rank) {
    while (mode == NEVER_CONNECTS) usleep(1000);
    Comm *comm = calloc(1, sizeof *comm);
    comm->rank = rank;
    return comm;
}
int ncclGetVersion(int *version) { *version = 22803; return 0; }
const char *ncclGetErrorString(int status) { return status == 6 ? "remote process exited" : "no error"; }
const char *ncclGetLastError(Comm *comm) { return mode == FAILS_BESIDE ? "socket 7 was closed" : ""; }
int ncclCommGetAsyncError(Comm *comm, int *status) {
    *status = mode == FAILS_BESIDE && given && comm->rank == 1 ? 6 : 7;
    return 0;
}
int ncclCommInitAll(Comm **comms, int n, const int *devices) {
    for (int i = 0; i < n; i++) comms[i] = make(i);
    return 0;
}
int ncclGetUniqueId(Id *id) { id->bytes[0] = 1; return 0; }
int ncclCommInitRank(Comm **comm, int n, Id id, int rank) {
    if (id.bytes[0] != 1) return 4;
    *comm = make(rank);
    return 0;
}
int ncclCommDestroy(Comm *comm) { while (mode == NEVER_ENDS) usleep(1000); destroys++; return 0; }
int ncclCommAbort(Comm *comm) { comm->aborted = 1; aborts++; return 0; }
int ncclGroupStart(void) { return 0; }
int ncclGroupEnd(void) {
    Comm *comm = used;
    used = NULL;
    if (!comm) return 0;
    while (mode == NEVER_GIVES && !comm->aborted) usleep(1000);
    given = 1;
    return 0;
}
int ncclAllGather(const void *from, void *to, size_t n, int of, Comm *comm, void *stream) { used = comm; return 0; }
int ncclSend(const void *from, size_t n, int of, int peer, Comm *comm, void *stream) { used = comm; return 0; }
int ncclRecv(void *to, size_t n, int of, int peer, Comm *comm, void *stream) { used = comm; return 0; }
"#;

/// How long a rank waits in these tests.
const LIMIT: Duration = Duration::from_millis(400);
/// What a rank that waits no longer than that has ended by, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

struct Stub {
    lib: &'static Nccl,
    mode: unsafe extern "C" fn(c_int),
    aborts: unsafe extern "C" fn() -> c_int,
    destroys: unsafe extern "C" fn() -> c_int,
}

/// Compiles and opens the stub, one for each test: a library of its own name. None without a C compiler, as on a
/// machine that has only the tests' programs.
fn stub(dir: &Path) -> Option<Stub> {
    let lib = stub::opened(dir, STUB, "libnccl.so.2")?;
    // SAFETY: the types are those of the source above.
    let (mode, aborts, destroys) = unsafe {
        (
            *lib.get::<unsafe extern "C" fn(c_int)>(b"stub_mode\0")
                .expect("there"),
            *lib.get::<unsafe extern "C" fn() -> c_int>(b"stub_aborts\0")
                .expect("there"),
            *lib.get::<unsafe extern "C" fn() -> c_int>(b"stub_destroys\0")
                .expect("there"),
        )
    };
    let lib = Nccl::of(PathBuf::from("stub"), lib).expect("every function is there");
    let lib: &'static Nccl = Box::leak(Box::new(lib));
    lib.suits().expect("it is new enough");
    Some(Stub {
        lib,
        mode,
        aborts,
        destroys,
    })
}

impl Stub {
    fn set(&self, mode: Mode) {
        // SAFETY: the stub's own function.
        unsafe { (self.mode)(mode as c_int) }
    }

    /// How many ranks were aborted, and how many ended.
    fn ended(&self) -> (c_int, c_int) {
        // SAFETY: the stub's own functions.
        unsafe { ((self.aborts)(), (self.destroys)()) }
    }

    /// Two ranks of this process.
    fn group(&self, limit: Duration) -> Result<Guarded, CommError> {
        Guarded::of_devices(self.lib, vec![0, 1], limit)
    }
}

/// The stub, or a line that says what is skipped.
#[allow(clippy::print_stderr, reason = "what is skipped must be seen")]
fn with_stub(test: impl FnOnce(&Stub)) {
    let dir = tempfile::tempdir().expect("a folder");
    match stub(dir.path()) {
        Some(stub) => test(&stub),
        None => eprintln!("skipped: no C compiler"),
    }
}

const STRETCH: [Stretch; 1] = [Stretch {
    whole: 0,
    part: 0,
    bytes: 8,
}];

/// A rank's next collective, of no memory: the stub moves nothing.
fn exchange(group: &Guarded, link: usize) -> Result<(), CommError> {
    let of = Collective {
        pattern: Pattern::AllGather,
        name: "weights",
        stretches: &STRETCH,
    };
    // SAFETY: nobody uses the addresses.
    unsafe { group.exchange(link, of, (4096, 8192, 0), std::ptr::null_mut()) }
}

/// Two processes' parties, with the stub's word of where GPUs meet.
fn parties() -> [Arc<Party>; 2] {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("nccl-{}-{number}", std::process::id());
    let meet = |rank| {
        let meeting = Meeting {
            far: None,
            name: name.clone(),
            world: World { rank, size: 2 },
            limit: SOON,
            patience: LIMIT,
        };
        thread::spawn(move || meeting.meet(b"", |_| Ok([&[1], &[0; ID - 1][..]].concat())))
    };
    [meet(0), meet(1)].map(|party| Arc::new(party.join().expect("met").expect("they come")))
}

#[test]
fn gpus_that_nccl_does_not_connect_are_given_up_at_the_limit() {
    with_stub(|stub| {
        stub.set(Mode::NeverConnects);
        let begin = Instant::now();
        let error = stub.group(LIMIT).err().expect("not connected").to_string();
        assert!(
            error.starts_with("NCCL did not connect the GPU of rank 0 to those of 2 ranks within"),
            "{error}"
        );
        // In processes of their own, one of which comes to it alone: the other one hears why.
        let [first, second] = parties();
        let error = Guarded::of_process(stub.lib, &second, || Ok(()));
        let error = error.err().expect("not connected");
        assert!(
            matches!(
                error,
                CommError::Unconnected {
                    rank: 1,
                    size: 2,
                    ..
                }
            ),
            "{error}"
        );
        let heard = until(|| first.ended());
        assert!(heard.to_string().contains("the GPU of rank 1"), "{heard}");
        assert!(begin.elapsed() < SOON);
    });
}

/// What comes of it within the time of a test.
fn until<T>(mut of: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        match of() {
            Some(value) => return value,
            None if begin.elapsed() > SOON => panic!("nothing within {SOON:?}"),
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
}

#[test]
fn a_call_that_waits_for_a_peer_is_freed_at_the_limit_and_the_peer_named() {
    with_stub(|stub| {
        stub.set(Mode::Works);
        let group = stub.group(LIMIT).expect("connected");
        for _ in 0..3 {
            exchange(&group, 0).and(exchange(&group, 1)).expect("moved");
        }
        stub.set(Mode::NeverGives);
        // Rank 1 does not come to it.
        let error = exchange(&group, 0).expect_err("nobody moves");
        assert_eq!(
            error.to_string(),
            "rank 1 did not come to collective 3, the all-gather of weights, within 0 s"
        );
        assert_eq!(exchange(&group, 1), Err(error), "what it hears later");
        until(|| (stub.ended() == (2, 0)).then_some(()));
    });
}

#[test]
fn a_call_of_a_process_that_does_not_return_ends_all_of_them() {
    with_stub(|stub| {
        stub.set(Mode::Works);
        let parties = parties();
        let connect = |party| {
            let lib = stub.lib;
            thread::spawn(move || Guarded::of_process(lib, &party, || Ok(())))
        };
        let groups = parties.clone().map(connect);
        let [first, second] = groups.map(|group| group.join().expect("no panic").expect("met"));
        stub.set(Mode::NeverGives);
        let error = exchange(&second, 0).expect_err("nobody moves");
        let text = "collective 0, the all-gather of weights, did not end on rank 1 within 0 s";
        assert!(error.to_string().starts_with(text), "{error}");
        let heard = until(|| first.stopped());
        assert!(heard.to_string().contains(text), "{heard}");
        // Both are aborted: the other one may be in a collective, too.
        until(|| (stub.ended().0 == 2).then_some(()));
    });
}

#[test]
fn a_stream_that_does_not_end_is_left_at_the_limit_and_what_it_waits_for_named() {
    with_stub(|stub| {
        stub.set(Mode::Works);
        let group = stub.group(LIMIT).expect("connected");
        exchange(&group, 0).and(exchange(&group, 1)).expect("given");
        group.wait(0, || Ok(true)).expect("it is done");
        exchange(&group, 1).expect("given");
        // A kernel that waits for its peer ends when its communicator is aborted.
        let error = group.wait(1, || Ok(stub.ended().0 > 0)).expect_err("alone");
        assert_eq!(
            error.to_string(),
            "rank 0 did not come to collective 1, the all-gather of weights, within 0 s"
        );
        // Of one that was done before, too: it may have got anything.
        assert_eq!(group.wait(0, || Ok(true)), Err(error));
    });
}

#[test]
fn an_error_beside_the_calls_is_found_and_has_the_librarys_words_and_the_rank() {
    with_stub(|stub| {
        stub.set(Mode::Works);
        let group = stub.group(SOON).expect("connected");
        exchange(&group, 0).expect("given");
        stub.set(Mode::FailsBeside);
        thread::sleep(2 * Duration::from_millis(50));
        assert_eq!(group.stopped(), None, "nothing has failed yet");
        exchange(&group, 1).expect("given");
        // Whoever waits for it is freed by the abort, and whoever asks hears why.
        let error = group.wait(0, || Ok(stub.ended().0 > 0));
        let text = "NCCL on rank 1: remote process exited: socket 7 was closed";
        assert_eq!(error.map_err(|e| e.to_string()), Err(text.to_owned()));
        assert_eq!(
            group.stopped().map(|e| e.to_string()),
            Some(text.to_owned())
        );
    });
}

#[test]
fn ranks_that_have_done_all_end_and_one_that_does_not_is_left() {
    with_stub(|stub| {
        stub.set(Mode::Works);
        drop(stub.group(LIMIT).expect("connected"));
        assert_eq!(stub.ended(), (0, 2));
        stub.set(Mode::Works);
        let group = stub.group(LIMIT).expect("connected");
        stub.set(Mode::NeverEnds);
        let begin = Instant::now();
        drop(group);
        assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    });
}

#[test]
fn a_version_is_written_as_people_do() {
    assert_eq!(dotted(22_803), "2.28.3");
    assert_eq!(dotted(LEAST), "2.18.0");
}
