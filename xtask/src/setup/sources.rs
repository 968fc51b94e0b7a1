//! Real C sources for guests to compile: Debian's package of newlib's, and a list of commands that compile them one
//! by one with this machine's own compiler.
//!
//! A C library has about a thousand files that need nothing but its own headers, so each can be compiled alone. Every
//! command of the list was carried out here once; what this compiler does not take is left out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use plimsoll_testbed::paths;

use super::Done;
use super::packages::download;
use crate::{out, run};

/// The package with the sources as a compressed archive.
const PACKAGE: &str = "newlib-source";
/// Folders of the library whose files need no particular machine or system.
const FOLDERS: [&str; 14] = [
    "libc/argz",
    "libc/ctype",
    "libc/iconv",
    "libc/locale",
    "libc/misc",
    "libc/search",
    "libc/signal",
    "libc/stdio",
    "libc/stdlib",
    "libc/string",
    "libc/time",
    "libm/common",
    "libm/complex",
    "libm/math",
];
/// Headers, and files that others include.
const INCLUDED: [&str; 5] = ["libc/include", "libm/common", "libc/stdio", "libc/locale", "libc/time"];
/// Fewer would mean that something else is wrong.
const LEAST: usize = 500;

/// The list: `keep FILE` for what all commands read (the workload keeps it open, see there), then the commands, `%o`
/// for the file that each writes.
pub(crate) fn list() -> PathBuf {
    dir().join("commands")
}

fn dir() -> PathBuf {
    paths::work_dir().join("sources")
}

/// Fetches the sources and makes the list, unless it is there and of this compiler.
pub(super) fn fetch() -> Result<Done> {
    let compiler = Compiler::find()?;
    if fs::read_to_string(dir().join("compiler")).is_ok_and(|text| text == compiler.version) {
        let commands = fs::read_to_string(list()).map_or(0, |text| count(&text));
        if commands >= LEAST {
            return Ok(Done::Already(format!(
                "{commands} files of {PACKAGE} for {}",
                compiler.program.display()
            )));
        }
    }
    let partial = dir().with_extension(format!("partial-{}", std::process::id()));
    fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    let made = unpack(&partial).and_then(|()| place(&partial)).and_then(|()| write_list(&compiler));
    // After success there is nothing left of it.
    let _ = fs::remove_dir_all(&partial);
    let commands = made?;
    // Last: it says that the rest is whole.
    fs::write(dir().join("compiler"), &compiler.version)?;
    Ok(Done::Now(format!(
        "{commands} files of {PACKAGE}, each compiled once with {}",
        compiler.program.display()
    )))
}

/// The host's C compiler.
struct Compiler {
    program: PathBuf,
    version: String,
    /// Its own headers (stddef.h, stdarg.h), which no C library has.
    headers: PathBuf,
}

impl Compiler {
    fn find() -> Result<Self> {
        let program =
            paths::program("gcc", "gcc").context("guests compile with the host's own C compiler")?;
        let ask = |words: &[&str]| run::quiet(Command::new(&program).args(words));
        let headers = PathBuf::from(ask(&["-print-file-name=include"])?.trim());
        ensure!(headers.is_absolute(), "{} does not say where its headers are", program.display());
        Ok(Self { version: ask(&["--version"])?, headers, program })
    }

    /// The programs that a compilation runs, the libraries they load, and the compiler's own headers for C.
    fn parts(&self) -> Result<Vec<PathBuf>> {
        let name =
            |part: &str| run::quiet(Command::new(&self.program).arg(format!("-print-prog-name={part}")));
        let mut parts = vec![self.program.clone()];
        for part in ["cc1", "as"] {
            let path = PathBuf::from(name(part)?.trim());
            // A bare name is to be found as a shell finds it.
            parts.push(if path.is_absolute() { path } else { paths::program(part, "binutils")? });
        }
        let loaded = run::quiet(Command::new("ldd").args(&parts))?;
        let libraries = loaded.split_ascii_whitespace().filter(|word| word.starts_with('/'));
        parts.extend(libraries.map(|word| PathBuf::from(word.trim_end_matches(':'))));
        for header in ["stddef.h", "stdarg.h", "stdint.h", "limits.h", "float.h", "stdbool.h"] {
            parts.push(self.headers.join(header));
        }
        // A guest follows no link that leaves its view of the host's files.
        let mut parts: Vec<_> = parts.iter().filter_map(|part| part.canonicalize().ok()).collect();
        parts.sort();
        parts.dedup();
        Ok(parts)
    }

    /// The command that compiles one file.
    fn line(&self, root: &Path, file: &Path) -> String {
        let mut words = vec![self.program.display().to_string()];
        words.extend(["-O2", "-g", "-w", "-nostdinc", "-isystem"].map(str::to_owned));
        words.push(self.headers.display().to_string());
        words.push(format!("-I{}", root.join("config").display()));
        words.extend(INCLUDED.iter().map(|dir| format!("-I{}", root.join(dir).display())));
        words.extend(["-c".to_owned(), file.display().to_string(), "-o".to_owned(), "%o".to_owned()]);
        words.join(" ")
    }
}

/// Downloads the package and unpacks what is needed of it.
fn unpack(partial: &Path) -> Result<()> {
    out::say(&format!("    downloading {PACKAGE}, about 6 MB"));
    let package = download(PACKAGE, partial)?;
    let tree = partial.join("package");
    run::quiet(Command::new("dpkg").arg("--extract").arg(&package).arg(&tree))?;
    let folder = tree.join("usr/src/newlib");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = entries.flatten().map(|entry| entry.path());
    let is_archive = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "xz");
    let archive = files.find(is_archive).with_context(|| format!("no archive in {}", folder.display()))?;
    let all = partial.join("all");
    fs::create_dir(&all)?;
    // tar needs xz for this one; its error says so.
    run::quiet(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&all))?;
    let mut roots = fs::read_dir(&all)?.flatten().map(|entry| entry.path().join("newlib"));
    let root = roots.find(|path| path.join("libc").is_dir()).context("the archive has no newlib/libc")?;
    fs::rename(root, partial.join("newlib"))?;
    fs::remove_dir_all(&all)?;
    fs::remove_dir_all(&tree)?;
    configure(&partial.join("newlib"))
}

/// What newlib's own configure would write: its answers to all questions left open.
fn configure(root: &Path) -> Result<()> {
    let config = root.join("config");
    fs::create_dir_all(&config)?;
    for name in ["newlib", "_newlib_version"] {
        let from = root.join(format!("{name}.hin"));
        fs::copy(&from, config.join(format!("{name}.h"))).with_context(|| format!("{}", from.display()))?;
    }
    Ok(())
}

/// Puts the sources in their place. Those of an earlier compiler are the same sources.
fn place(partial: &Path) -> Result<()> {
    let (from, to) = (partial.join("newlib"), dir().join("newlib"));
    fs::create_dir_all(dir())?;
    match fs::remove_dir_all(&to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    fs::rename(&from, &to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}

/// Carries every command out, as many at a time as there are processors, and writes down those that went well.
fn write_list(compiler: &Compiler) -> Result<usize> {
    let root = dir().join("newlib");
    ensure!(!root.to_string_lossy().contains(char::is_whitespace), "{} has a blank in it", root.display());
    let files = files(&root)?;
    out::say(&format!("    compiling {} files once", files.len()));
    let lines: Vec<_> = files.iter().map(|file| compiler.line(&root, file)).collect();
    let next = AtomicUsize::new(0);
    let good = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (lines, next, good) = (&lines, &next, &good);
            let object = dir().join(format!("try-{}-{thread}.o", std::process::id()));
            scope.spawn(move || {
                while let Some(line) = lines.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if compiles(line, &object) {
                        good.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(line.clone());
                    }
                }
                let _ = fs::remove_file(&object);
            });
        }
    });
    let mut good = good.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if good.len() < LEAST {
        bail!("{} compiles only {} of {} files", compiler.program.display(), good.len(), lines.len());
    }
    // Any stretch of the list shall be as much work as any other of the same length, and the same on every machine.
    good.sort_by_cached_key(|line| (fnv(line.rsplit("newlib/").next().unwrap_or(line)), line.clone()));
    let kept = compiler.parts()?.into_iter().chain(headers(&root)?);
    let lines = kept.map(|path| format!("keep {}", path.display())).chain(good.iter().cloned());
    fs::write(list(), lines.collect::<Vec<_>>().join("\n") + "\n")?;
    Ok(good.len())
}

/// How many commands a list has; none when it is of the time before it said what to keep.
fn count(list: &str) -> usize {
    let (kept, commands): (Vec<_>, Vec<_>) = list.lines().partition(|line| line.starts_with("keep "));
    if kept.is_empty() { 0 } else { commands.len() }
}

/// The library's headers.
fn headers(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders: Vec<_> = INCLUDED.iter().chain(&["config"]).map(|dir| root.join(dir)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "h") {
                found.push(path);
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn compiles(line: &str, object: &Path) -> bool {
    let line = line.replace("%o", &object.display().to_string());
    let mut words = line.split_ascii_whitespace();
    let Some(program) = words.next() else { return false };
    Command::new(program).args(words).output().is_ok_and(|output| output.status.success())
}

/// All C files of the folders, by name.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in FOLDERS {
        let folder = root.join(folder);
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let paths = entries.flatten().map(|entry| entry.path());
        found.extend(paths.filter(|path| path.extension().is_some_and(|extension| extension == "c")));
    }
    found.sort();
    Ok(found)
}

/// The 64-bit hash FNV-1a: the same on every machine and in every version.
fn fnv(text: &str) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, mix)
}

#[cfg(test)]
mod test {
    use std::path::Path;

    use super::{Compiler, count, fnv};

    #[test]
    fn a_command_compiles_one_file_without_the_hosts_headers() {
        let compiler =
            Compiler { program: "/usr/bin/gcc".into(), version: "12".into(), headers: "/inc".into() };
        let line = compiler.line(Path::new("/s/newlib"), Path::new("/s/newlib/libm/math/e_pow.c"));
        assert!(
            line.starts_with("/usr/bin/gcc -O2 -g -w -nostdinc -isystem /inc -I/s/newlib/config "),
            "{line}"
        );
        assert!(line.ends_with(" -c /s/newlib/libm/math/e_pow.c -o %o"), "{line}");
    }

    #[test]
    fn a_list_without_what_to_keep_is_made_anew() {
        assert_eq!(count("keep /a\nkeep /b\ngcc 1\ngcc 2\n"), 2);
        assert_eq!((count("gcc 1\ngcc 2\n"), count("")), (0, 0));
    }

    #[test]
    fn a_compilers_parts_are_files_of_this_machine() {
        let compiler = Compiler::find().expect("what links this test");
        let parts = compiler.parts().expect("ldd and gcc say");
        let named = |name: &str| parts.iter().any(|part| part.to_string_lossy().contains(name));
        assert!(named("cc1") && named("libc.so") && named("stddef.h"), "{parts:?}");
        assert!(parts.iter().all(|part| part.is_file()));
    }

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!((fnv(""), fnv("a")), (0xcbf2_9ce4_8422_2325, 0xaf63_dc4c_8601_ec8c));
    }
}
