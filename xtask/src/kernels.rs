//! `cargo xtask kernels`: every `.cu` compiles for common targets, with next to no spilled registers, on a
//! machine without a GPU. NVRTC comes from PyPI into `target/nvrtc` unless this machine has one.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use lowtide_device::cuda::{CudaError, Libraries, Library, Source, compile};
use rayon::prelude::*;

/// Compute capabilities of A100, RTX 4090 and H100.
const TARGETS: [&str; 3] = ["sm_80", "sm_89", "sm_90"];
/// Storage types that sources are compiled for.
const DEFINES: [&str; 2] = ["BF16", "F32"];
/// The compiler that is fetched: of the oldest CUDA 13, so that sources stay within it.
const PACKAGE: &str = "nvidia-cuda-nvrtc==13.0.88";

/// Bytes of registers that a thread may spill: a few, outside of inner loops, are cheaper than the
/// occupancy that they buy. The attention of 128 numbers a head spills most, 68 bytes.
const SPILLS: u32 = 72;

/// Compiles everything and prints a table.
pub fn run(root: &Path) -> ExitCode {
    if std::env::var_os("LOWTIDE_CUDA_LIBS").is_none()
        && Libraries::get().find(Library::Nvrtc).is_err()
    {
        // Folders are looked at once a process: fetch, then start anew with the folder named.
        return match fetch(root) {
            Ok(folder) => again(&folder),
            Err(what) => {
                eprintln!("no NVRTC, and it cannot be fetched: {what}");
                ExitCode::FAILURE
            }
        };
    }
    let jobs: Vec<_> = sources(root)
        .into_iter()
        .flat_map(|source| DEFINES.map(|define| TARGETS.map(|target| (source, define, target))))
        .flatten()
        .collect();
    // NVRTC compiles on as many cores as call it; what it says is printed in the order of the jobs.
    let outcomes: Vec<_> = jobs
        .par_iter()
        .map(|(source, define, target)| compile(source, define, target))
        .collect();
    let mut wrong = 0;
    let mut compiled = 0;
    for ((source, define, target), outcome) in jobs.into_iter().zip(outcomes) {
        match outcome {
            Ok((_, report)) => {
                compiled += 1;
                for kernel in kernels(&report) {
                    if kernel.spills > SPILLS {
                        wrong += 1;
                        println!(
                            "{} {define} {target}: {} spills {} bytes",
                            source.name, kernel.name, kernel.spills
                        );
                    } else if target == "sm_90" && define == "BF16" {
                        println!(
                            "{:<24} {:<36} {:>3} registers, {:>2} bytes spilled",
                            source.name, kernel.name, kernel.registers, kernel.spills
                        );
                    }
                }
            }
            Err(CudaError::Compile { log, .. }) => {
                wrong += 1;
                println!("{} {define} {target}:\n{log}", source.name);
            }
            Err(e) => {
                eprintln!("{e}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{compiled} compilations, {wrong} wrong");
    if wrong == 0 && compiled > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Every `.cu` of the kernels, with every header of ours.
fn sources(root: &Path) -> Vec<&'static Source> {
    let mut files = Vec::new();
    walk(&root.join("crates/kernels/src"), &mut files);
    files.sort();
    // They live as long as the process, as the sources that are part of a program do.
    let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).expect("a file that was just listed");
        let name = path.file_name().expect("a file").to_string_lossy();
        (leak(name.into_owned()), leak(text))
    };
    let with = |end: &str| {
        files
            .iter()
            .filter(|f| f.extension().is_some_and(|e| e == end))
            .map(read)
            .collect::<Vec<_>>()
    };
    let headers: &'static [(&str, &str)] = Box::leak(with("cuh").into_boxed_slice());
    with("cu")
        .into_iter()
        .map(|(name, text)| {
            let source = Source {
                name,
                text,
                headers,
            };
            &*Box::leak(Box::new(source))
        })
        .collect()
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            walk(&path, files);
        } else {
            files.push(path);
        }
    }
}

/// One kernel of the compiler's report.
struct Kernel {
    name: String,
    registers: u32,
    spills: u32,
}

fn kernels(report: &str) -> Vec<Kernel> {
    let mut all: Vec<Kernel> = Vec::new();
    let number_before = |line: &str, what: &str| -> Option<u32> {
        line.split(what)
            .next()
            .filter(|before| before.len() < line.len())?
            .split_whitespace()
            .last()?
            .parse()
            .ok()
    };
    for line in report.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let name = rest.split('\'').next().unwrap_or_default().to_owned();
            all.push(Kernel {
                name,
                registers: 0,
                spills: 0,
            });
        }
        if let Some(kernel) = all.last_mut() {
            if let Some(n) = number_before(line, " bytes spill stores") {
                kernel.spills = n;
            }
            if let Some(n) = number_before(line, " registers") {
                kernel.registers = n;
            }
        }
    }
    all
}

/// Installs the compiler into `target/nvrtc`; returns its folder.
fn fetch(root: &Path) -> Result<PathBuf, String> {
    let venv = root.join("target/nvrtc");
    let find = || {
        let lib = venv.join("lib");
        let pythons = std::fs::read_dir(lib).into_iter().flatten().flatten();
        pythons
            .map(|p| p.path().join("site-packages/nvidia/cu13/lib"))
            .find(|p| p.join("libnvrtc.so.13").exists())
    };
    if let Some(folder) = find() {
        return Ok(folder);
    }
    let run = |program: &Path, args: &[&str]| {
        let status = Command::new(program).args(args).status();
        match status {
            Ok(s) if s.success() => Ok(()),
            Ok(s) => Err(format!("{} {}: {s}", program.display(), args.join(" "))),
            Err(e) => Err(format!("{}: {e}", program.display())),
        }
    };
    let folder = venv.to_string_lossy();
    run(Path::new("python3"), &["-m", "venv", &folder])?;
    run(&venv.join("bin/pip"), &["install", "--quiet", PACKAGE])?;
    find().ok_or_else(|| format!("{PACKAGE} holds no libnvrtc.so.13"))
}

/// This command again, with the compiler's folder named.
fn again(folder: &Path) -> ExitCode {
    let this = std::env::current_exe().expect("this program has a path");
    let status = Command::new(this)
        .args(std::env::args().skip(1))
        .env("LOWTIDE_CUDA_LIBS", folder)
        .status();
    match status {
        Ok(s) if s.success() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let report = "ptxas info    : Compiling entry function 'f' for 'sm_90'\n\
            ptxas         .     0 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads\n\
            ptxas info    : Used 40 registers, used 0 barriers\n";
        let all = kernels(report);
        assert_eq!(all.len(), 1);
        let k = &all[0];
        assert_eq!((k.name.as_str(), k.registers, k.spills), ("f", 40, 12));
    }

    #[test]
    fn every_source_is_found_with_the_headers() {
        let all = sources(&crate::root());
        assert!(all.iter().any(|s| s.name == "rmsnorm.cu"), "{}", all.len());
        assert!(all[0].headers.iter().any(|h| h.0 == "common.cuh"));
    }
}
