//! Finds NVIDIA's libraries: in the system, or in the `nvidia-*` packages that pip installs.
//!
//! A file is opened by its absolute path, and the files beside it that belong to it first, because
//! the loader would otherwise look for those by name and may find another version's (seen: a
//! cuDNN 9.14 that loaded the engines of a 9.19).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::CudaError;

/// Where a CUDA toolkit and the system have libraries of this architecture (of Arm, those of servers).
#[cfg(not(target_arch = "aarch64"))]
const PLACES: [&str; 2] = ["targets/x86_64-linux/lib", "/usr/lib/x86_64-linux-gnu"];
#[cfg(target_arch = "aarch64")]
const PLACES: [&str; 2] = ["targets/sbsa-linux/lib", "/usr/lib/aarch64-linux-gnu"];

/// One of NVIDIA's libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// The compiler of kernels.
    Nvrtc,
    /// cuBLASLt, for matrix products.
    CublasLt,
    /// cuDNN, for attention.
    Cudnn,
    /// What several GPUs exchange.
    Nccl,
    /// cuFile, for transfers between drives and a GPU.
    Cufile,
}

impl Library {
    /// File names, the preferred first.
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Nvrtc => &["libnvrtc.so.13", "libnvrtc.so.12"],
            Self::CublasLt => &["libcublasLt.so.13", "libcublasLt.so.12"],
            Self::Cudnn => &["libcudnn.so.9"],
            Self::Nccl => &["libnccl.so.2"],
            Self::Cufile => &["libcufile.so.0"],
        }
    }

    /// The preferred file name.
    #[must_use]
    pub fn file(self) -> &'static str {
        self.files()[0]
    }

    /// Start of the names of the files that belong to it.
    fn parts(self) -> &'static str {
        match self {
            Self::Nvrtc => "libnvrtc-builtins.so",
            Self::CublasLt => "libcublasLt-none",
            Self::Cudnn => "libcudnn_",
            Self::Nccl => "libnccl-none",
            Self::Cufile => "libcufile-none",
        }
    }

    /// The package that holds it, for CUDA 13.
    #[must_use]
    pub fn package(self) -> &'static str {
        match self {
            Self::Nvrtc => "nvidia-cuda-nvrtc",
            Self::CublasLt => "nvidia-cublas",
            Self::Cudnn => "nvidia-cudnn-cu13",
            Self::Nccl => "nvidia-nccl-cu13",
            Self::Cufile => "nvidia-cufile",
        }
    }
}

/// Where libraries are searched, in order.
#[derive(Debug)]
pub struct Libraries {
    folders: Vec<PathBuf>,
}

impl Libraries {
    /// The folders of this machine: `LOWTIDE_CUDA_LIBS`, the Python environment's `nvidia`
    /// packages, `LD_LIBRARY_PATH`, CUDA's own folders, the system's.
    #[must_use]
    pub fn get() -> &'static Self {
        static FOUND: OnceLock<Libraries> = OnceLock::new();
        FOUND.get_or_init(|| {
            let list = |name: &str| -> Vec<PathBuf> {
                std::env::var_os(name)
                    .map(|v| std::env::split_paths(&v).collect())
                    .unwrap_or_default()
            };
            let mut folders = list("LOWTIDE_CUDA_LIBS");
            for root in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
                for root in list(root) {
                    for python in children(&root.join("lib"), "python3") {
                        packages(&python.join("site-packages/nvidia"), &mut folders);
                    }
                }
            }
            for site in python_sites() {
                packages(&site.join("nvidia"), &mut folders);
            }
            folders.extend(list("LD_LIBRARY_PATH"));
            for cuda in children(Path::new("/usr/local"), "cuda") {
                folders.push(cuda.join("lib64"));
                folders.push(cuda.join(PLACES[0]));
            }
            for system in [PLACES[1], "/usr/lib64", "/usr/lib"] {
                folders.push(PathBuf::from(system));
            }
            folders.retain(|f| f.is_dir());
            let mut seen = Vec::new();
            folders.retain(|f| {
                !seen.contains(f) && {
                    seen.push(f.clone());
                    true
                }
            });
            Libraries { folders }
        })
    }

    /// The file of a library.
    ///
    /// # Errors
    /// [`CudaError::Library`] with the folders that were searched.
    pub fn find(&self, library: Library) -> Result<PathBuf, CudaError> {
        for file in library.files() {
            for folder in &self.folders {
                let path = folder.join(file);
                if path.is_file() {
                    return Ok(path);
                }
            }
        }
        Err(CudaError::Library {
            library,
            searched: self.folders.clone(),
        })
    }

    /// Finds and opens a library.
    ///
    /// # Errors
    /// When it is not found or cannot be loaded.
    pub(super) fn open(
        &self,
        library: Library,
    ) -> Result<(PathBuf, libloading::Library), CudaError> {
        let path = self.find(library)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let mut parts = children(folder, library.parts());
        // Some of them need each other; what fails in one round may load in the next.
        for _ in 0..3 {
            parts.retain(|part| match load(part) {
                Ok(lib) => {
                    std::mem::forget(lib); // stays for the life of the process
                    false
                }
                Err(_) => true,
            });
        }
        let lib = load(&path).map_err(|e| CudaError::BadLibrary {
            path: path.clone(),
            what: e.to_string(),
        })?;
        Ok((path, lib))
    }
}

/// Whether a driver that supports CUDA `driver` can run a library: its major version must not be
/// newer.
pub(super) fn suits_driver(path: &Path, driver: (u32, u32)) -> Result<(), CudaError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let major = name.rsplit('.').next().and_then(|n| n.parse::<u32>().ok());
    match major {
        Some(major) if major > driver.0 => Err(CudaError::Driver {
            have: format!("{}.{}", driver.0, driver.1),
            library: path.display().to_string(),
            need: format!("{major}.0"),
        }),
        _ => Ok(()),
    }
}

fn load(path: &Path) -> Result<libloading::Library, libloading::Error> {
    use libloading::os::unix;
    // SAFETY: NVIDIA's library; what it does when it is loaded is its own.
    unsafe { unix::Library::open(Some(path), unix::RTLD_NOW | unix::RTLD_GLOBAL) }.map(Into::into)
}

/// Entries of a folder whose names start with `start`, sorted, the newest version first.
fn children(folder: &Path, start: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|e| e.file_name().to_string_lossy().starts_with(start))
        .map(|e| e.path())
        .collect();
    found.sort();
    found.reverse();
    found
}

/// The `lib` folders of the packages under `nvidia`.
fn packages(nvidia: &Path, folders: &mut Vec<PathBuf>) {
    folders.extend(children(nvidia, "").into_iter().map(|p| p.join("lib")));
}

/// Where the `python3` of this shell keeps its packages.
fn python_sites() -> Vec<PathBuf> {
    let code = "import site, sysconfig; \
                print(chr(10).join([sysconfig.get_paths()['purelib'], *site.getsitepackages()]))";
    Command::new("python3")
        .args(["-c", code])
        .output()
        .ok()
        .filter(|o| o.status.success())
        .map(|o| {
            String::from_utf8_lossy(&o.stdout)
                .lines()
                .map(PathBuf::from)
                .collect()
        })
        .unwrap_or_default()
}

/// Functions of a library, by name: `functions!(Name { fn f(a: T) -> R; })` makes a table that is
/// filled when the library is opened.
macro_rules! functions {
    ($(#[$meta:meta])* $name:ident { $(fn $f:ident($($a:ident: $t:ty),* $(,)?) -> $r:ty;)* }) => {
        $(#[$meta])*
        #[allow(non_snake_case, reason = "the library's names")]
        pub(super) struct $name {
            /// The file it came from.
            #[allow(dead_code, reason = "not of every library anybody asks")]
            pub path: std::path::PathBuf,
            $(pub $f: unsafe extern "C" fn($($t),*) -> $r,)*
        }

        impl $name {
            /// Opens the library, once a process.
            pub fn get() -> Result<&'static Self, $crate::cuda::CudaError> {
                static OPEN: std::sync::OnceLock<Result<$name, $crate::cuda::CudaError>> =
                    std::sync::OnceLock::new();
                OPEN.get_or_init(Self::open).as_ref().map_err(Clone::clone)
            }

            fn open() -> Result<Self, $crate::cuda::CudaError> {
                let (path, lib) =
                    $crate::cuda::Libraries::get().open($crate::cuda::Library::$name)?;
                Self::of(path, lib)
            }

            /// The functions of a library that was opened, which then stays.
            #[allow(non_snake_case, reason = "the library's names")]
            fn of(
                path: std::path::PathBuf,
                lib: libloading::Library,
            ) -> Result<Self, $crate::cuda::CudaError> {
                let lib = std::mem::ManuallyDrop::new(lib); // stays for the life of the process
                $(
                    // SAFETY: the type is that of NVIDIA's header for this function.
                    let $f = *unsafe {
                        lib.get::<unsafe extern "C" fn($($t),*) -> $r>(
                            concat!(stringify!($f), "\0").as_bytes(),
                        )
                    }
                    .map_err(|e| $crate::cuda::CudaError::BadLibrary {
                        path: path.clone(),
                        what: e.to_string(),
                    })?;
                )*
                Ok(Self { path, $($f,)* })
            }
        }
    };
}
pub(super) use functions;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_missing_is_named_with_where_it_was_searched() {
        let nowhere = tempfile::tempdir().expect("a folder");
        let libraries = Libraries {
            folders: vec![nowhere.path().to_owned()],
        };
        for library in [
            Library::Nvrtc,
            Library::CublasLt,
            Library::Cudnn,
            Library::Nccl,
            Library::Cufile,
        ] {
            let error = libraries.find(library).expect_err("an empty folder");
            let text = error.to_string();
            let folder = nowhere.path().display().to_string();
            assert!(
                text.contains(library.files()[0]) && text.contains(&folder),
                "{text}"
            );
        }
        std::fs::write(nowhere.path().join("libcudnn.so.9"), b"not a library").expect("written");
        let found = libraries.find(Library::Cudnn).expect("it is there now");
        assert!(found.starts_with(nowhere.path()));
        let error = libraries.open(Library::Cudnn).expect_err("no library");
        assert!(matches!(error, CudaError::BadLibrary { .. }), "{error}");
    }

    #[test]
    fn a_driver_that_is_too_old_is_named_with_the_library() {
        let path = Path::new("/somewhere/libcublasLt.so.13");
        assert!(suits_driver(path, (13, 0)).is_ok());
        assert!(suits_driver(Path::new("/x/libcublasLt.so.12"), (13, 0)).is_ok());
        let error = suits_driver(path, (12, 4))
            .expect_err("too old")
            .to_string();
        assert!(
            error.contains("12.4") && error.contains("libcublasLt.so.13"),
            "{error}"
        );
    }
}
