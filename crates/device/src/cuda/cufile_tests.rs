//! With a stub in cuFile's place: a library in C by NVIDIA's documentation, on the host's memory.

use std::path::PathBuf;

use super::super::stub;
use super::*;

/// What the stub does: all that is asked; keeps compatibility mode on; supports nothing; has no driver; refuses files;
/// refuses memory; reports transfers that it does not make; moves a part at first.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Direct,
    Compatible,
    Forced,
    Nothing,
    PeerToPeer,
    NoDriver,
    NoFile,
    NoMemory,
    Lies,
    Short,
}

const STUB: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>
#include <errno.h>
typedef struct { int err; int cu_err; } Error;
typedef struct { int type; union { int fd; void *handle; } handle; const void *fs_ops; } Descr;
typedef struct {
    struct { unsigned major, minor; size_t poll, most; unsigned status, control; } nvfs;
    unsigned features, cache, each, pinned, batch, time;
} Props;
enum { DIRECT, COMPATIBLE, FORCED, NOTHING, PEER, NO_DRIVER, NO_FILE, NO_MEMORY, LIES, SHORT };
static int mode, direct, opened, handles, buffers, calls;
static bool parameter[12];
static const void *base_of; static size_t length;
void stub_mode(int m, int d) {
    mode = m; direct = d; opened = calls = 0; parameter[1] = parameter[2] = true;
}
int stub_registered(void) { return handles * 100 + buffers; }
static Error e(int code) { Error error = { code, 0 }; return error; }
Error cuFileSetParameterBool(int p, bool v) {
    if (opened) return e(5022);
    if (!(mode == COMPATIBLE && p == 1) && !(mode == FORCED && p == 2)) parameter[p] = v;
    return e(0);
}
Error cuFileGetParameterBool(int p, bool *v) { *v = parameter[p]; return e(0); }
Error cuFileDriverOpen(void) { if (mode == NO_DRIVER) return e(5001); opened = 1; return e(0); }
Error cuFileDriverGetProperties(Props *p) {
    memset(p, 0, sizeof *p);
    p->nvfs.status = mode == NOTHING || mode == PEER ? 0 : 1 << 4;
    p->features = mode == PEER ? 0x1f : 0xf;
    p->cache = 128 << 10; p->each = 1 << 10; p->pinned = 32 << 20; p->batch = 128; p->time = 5;
    return e(0);
}
Error cuFileHandleRegister(void **h, Descr *d) {
    if (mode == NO_FILE) return e(5008);
    if (d->type != 1 || d->fs_ops) return e(5022);
    int flags = fcntl(d->handle.fd, F_GETFL);
    if (flags & (O_APPEND | O_NONBLOCK | O_DIRECTORY | O_NOFOLLOW)) return e(5019);
    if ((flags & O_ACCMODE) != O_RDWR || (direct && !(flags & O_DIRECT))) return e(5020);
    *h = (void *)(size_t)(d->handle.fd + 1000);
    handles++;
    return e(0);
}
void cuFileHandleDeregister(void *h) { if ((size_t)h >= 1000) handles--; }
Error cuFileBufRegister(const void *b, size_t n, int flags) {
    if (mode == NO_MEMORY) return e(5016);
    if (flags) return e(5022);
    base_of = b; length = n; buffers++;
    return e(0);
}
Error cuFileBufDeregister(const void *b) { if (b == base_of) buffers--; return e(0); }
static ssize_t move(void *h, char *b, size_t n, off_t at, off_t off, int writes) {
    int fd = (int)(size_t)h - 1000;
    if (b != base_of || off + n > length) return -5012;
    calls++;
    if (mode == SHORT && calls % 3 == 1) { errno = EINTR; return -1; }
    if (mode == SHORT && calls % 3 == 2 && n > 4096) n = 4096;
    if (mode == LIES) return n;
    return writes ? pwrite(fd, b + off, n, at) : pread(fd, b + off, n, at);
}
ssize_t cuFileRead(void *h, void *b, size_t n, off_t at, off_t off) { return move(h, b, n, at, off, 0); }
ssize_t cuFileWrite(void *h, const void *b, size_t n, off_t at, off_t off) { return move(h, (char *)b, n, at, off, 1); }
"#;

struct Stub {
    library: &'static Cufile,
    mode: unsafe extern "C" fn(c_int, c_int),
    registered: unsafe extern "C" fn() -> c_int,
}

/// Compiles and opens the stub. None without a C compiler, as on a machine that has only the tests' programs.
fn stub(dir: &Path) -> Option<Stub> {
    let lib = stub::opened(dir, STUB, "libcufile.so.0")?;
    // SAFETY: the types are those of the source above.
    let (mode, registered) = unsafe {
        (
            *lib.get::<unsafe extern "C" fn(c_int, c_int)>(b"stub_mode\0")
                .expect("there"),
            *lib.get::<unsafe extern "C" fn() -> c_int>(b"stub_registered\0")
                .expect("there"),
        )
    };
    let library = Cufile::of(PathBuf::from("stub"), lib).expect("every function is there");
    Some(Stub {
        library: Box::leak(Box::new(library)),
        mode,
        registered,
    })
}

impl Stub {
    /// All of detection: the library starts, memory and files are registered, bytes go both ways.
    fn detected(&self, mode: Mode, dir: &Path) -> Result<Disk, NoDirect> {
        let dirs = ["a", "b"].map(|name| (dir.join(name), 1.0));
        dirs.iter()
            .for_each(|(dir, _)| std::fs::create_dir_all(dir).expect("made"));
        let mut config = DiskConfig::new(dirs);
        (config.block, config.stripe) = (Bytes(16 << 10), Bytes(16 << 10));
        let disk = Disk::open(&config.fit(Bytes(128 << 10))?, None)?;
        // Some file systems have no direct I/O, which the stub then does not ask for.
        let files = disk.for_device();
        // SAFETY: the stub's own function; one thread uses it.
        unsafe { (self.mode)(mode as c_int, c_int::from(files.is_ok())) };
        let files = match files {
            Err(TierError::Backend { .. }) => {
                let open = |path| File::options().read(true).write(true).open(path);
                let plain = disk.paths().map(open).collect::<Result<_, _>>();
                plain.expect("its files")
            }
            files => files?,
        };
        let most = self.library.start()?;
        // Of 32 GiB, less 128 MiB.
        assert_eq!(most, Bytes((32 << 30) - (128 << 20)));
        // The host's memory stands in for a device's.
        let mut device = Memory::new(Arena::new(Bytes(256 << 10), Fill::Zero)?);
        let base = device.arena().base().expose_provenance() as u64;
        let place = (base, device.bytes().0);
        let reach = DirectFiles::register(self.library, place, None, files)?;
        disk.reach_by(Arc::new(reach))?;
        prove_direct(&disk, &mut device)?;
        // Outside of the registered memory nothing moves.
        let extent = Extent {
            offset: 0,
            bytes: 4096,
        };
        // SAFETY: it is refused.
        let outside = unsafe { disk.submit_device(Kind::Read, extent, base - 4096, 0) }.wait();
        assert!(matches!(outside, Err(TierError::Io { .. })), "{outside:?}");
        Ok(disk)
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "what is skipped must be seen")]
fn cufile_is_used_only_where_it_passes_no_host_memory() {
    let dir = tempfile::tempdir().expect("a folder");
    let Some(stub) = stub(dir.path()) else {
        eprintln!("skipped: no C compiler");
        return;
    };
    // SAFETY: the stub's own function.
    let registered = || unsafe { (stub.registered)() };
    for mode in [Mode::Direct, Mode::PeerToPeer, Mode::Short] {
        let disk = stub.detected(mode, dir.path());
        let disk = disk.unwrap_or_else(|e| panic!("{mode:?}: {e}"));
        let moved = disk.counters();
        assert_eq!(
            (moved.read, moved.written),
            (Bytes(256 << 10), Bytes(256 << 10))
        );
        // Two files and one memory, until the disk is closed.
        assert_eq!(registered(), 201);
        drop(disk);
        assert_eq!(registered(), 0);
    }
    for (mode, words) in [
        (Mode::Compatible, "compatibility mode"),
        (Mode::Forced, "compatibility mode"),
        (Mode::Nothing, "supports no drive"),
        (
            Mode::NoDriver,
            "cuFileDriverOpen: error 5001 (nvidia-fs is not loaded)",
        ),
        (Mode::NoFile, "cuFileHandleRegister: error 5008"),
        (
            Mode::NoMemory,
            "cuFileBufRegister: error 5016 (more memory than",
        ),
        (Mode::Lies, "a write by cuFile changes bytes"),
    ] {
        let why = stub.detected(mode, dir.path()).expect_err("it bounces");
        assert!(why.to_string().contains(words), "{mode:?}: {why}");
        assert_eq!(registered(), 0, "{mode:?}");
    }
}

#[test]
fn settings_ask_for_transfers_between_peers_or_not() {
    for (settings, want) in [
        (
            "{ \"properties\": {\n  \"use_pci_p2pdma\": true,\n} }",
            true,
        ),
        ("  \"use_pci_p2pdma\" :true", true),
        ("  \"use_pci_p2pdma\": false, // true", false),
        ("  // \"use_pci_p2pdma\": true", false),
        ("", false),
    ] {
        assert_eq!(asks_for_peers(settings), want, "{settings}");
    }
}
