//! A library in C in the place of one of NVIDIA's, for tests.

use std::path::Path;
use std::process::Command;

/// Compiles `source` in `dir` and opens it as `name`. None without a C compiler, as on a machine that has only the
/// tests' programs.
pub(super) fn opened(dir: &Path, source: &str, name: &str) -> Option<libloading::Library> {
    let (at, file) = (dir.join("stub.c"), dir.join(name));
    std::fs::write(&at, source).expect("written");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&file, &at])
        .status();
    if !compiled.ok()?.success() {
        return None;
    }
    // SAFETY: the library above, which does nothing when it is loaded.
    Some(unsafe { libloading::Library::new(&file) }.expect("it loads"))
}
