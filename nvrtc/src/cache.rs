//! Compiled kernels, kept by the content of what they are compiled from.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use crate::{Nvrtc, NvrtcError, Source, user_cache};

/// The environment variable that names the folder of the cache, or turns it off with `off`.
pub const ENV_CACHE: &str = "FUSED_DORA_CACHE";
const OFF: &str = "off";

/// Changes with the form of the entries.
const FORMAT: &str = "fused-dora kernel 1";

/// Entries that nothing has read for this long are removed.
const KEPT: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// A folder of compiled kernels that all builds and tools of a user share.
///
/// An entry's name is a hash of the source, the headers that it includes, the options and the NVRTC
/// library. The cache never makes a compilation fail: an entry that cannot be read or is damaged is
/// compiled again, and one that cannot be written is left out.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: Option<PathBuf>,
}

/// What NVRTC made of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Compiled {
    log: String,
    code: Vec<u8>,
}

impl Cache {
    /// The cache in the folder that `FUSED_DORA_CACHE` names, by default `kernels` in
    /// [`user_cache`]. With `FUSED_DORA_CACHE=off`, or where there is no such folder, everything is
    /// compiled.
    pub fn from_env() -> Self {
        let folder = match std::env::var_os(ENV_CACHE).filter(|value| !value.is_empty()) {
            Some(value) if value == OFF => None,
            Some(folder) => Some(folder.into()),
            None => user_cache().map(|folder| folder.join("kernels")),
        };
        Self { folder }
    }

    /// Where the entries are, unless the cache is off.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// [`Nvrtc::compile`], unless the PTX is in the cache.
    ///
    /// # Errors
    /// Those of [`Nvrtc::compile`].
    pub fn ptx(
        &self,
        nvrtc: &Nvrtc,
        source: &Source<'_>,
        options: &[&str],
    ) -> Result<String, NvrtcError> {
        let compile = || {
            let ptx = nvrtc.compile(source, options)?;
            Ok(Compiled { log: String::new(), code: ptx.into_bytes() })
        };
        let compiled = self.get_or_compile(&key("ptx", nvrtc, source, options), compile)?;
        Ok(String::from_utf8_lossy(&compiled.code).into_owned())
    }

    /// [`Nvrtc::compile_device`], unless the device code is in the cache.
    ///
    /// # Errors
    /// Those of [`Nvrtc::compile_device`].
    pub fn device_code(
        &self,
        nvrtc: &Nvrtc,
        source: &Source<'_>,
        options: &[&str],
    ) -> Result<(String, Vec<u8>), NvrtcError> {
        let compile = || {
            let (log, code) = nvrtc.compile_device(source, options)?;
            Ok(Compiled { log, code })
        };
        let Compiled { log, code } =
            self.get_or_compile(&key("cubin", nvrtc, source, options), compile)?;
        Ok((log, code))
    }

    /// Whether the PTX of a source is in the cache.
    pub fn has_ptx(&self, nvrtc: &Nvrtc, source: &Source<'_>, options: &[&str]) -> bool {
        self.read(&key("ptx", nvrtc, source, options)).is_some()
    }

    /// Removes the entries that nothing has read for two months.
    pub fn prune(&self) {
        let now = SystemTime::now();
        let is_old = |file: &fs::DirEntry| {
            let modified = file.metadata().and_then(|metadata| metadata.modified());
            modified.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > KEPT))
        };
        let entries = self.folder().map(fs::read_dir).into_iter().flatten().flatten().flatten();
        for entry in entries.filter(is_old) {
            // Another program may have removed it.
            let _ = fs::remove_file(entry.path());
        }
    }

    fn get_or_compile(
        &self,
        key: &str,
        compile: impl FnOnce() -> Result<Compiled, NvrtcError>,
    ) -> Result<Compiled, NvrtcError> {
        if let Some(compiled) = self.read(key) {
            return Ok(compiled);
        }
        let compiled = compile()?;
        // Without an entry the next build compiles again.
        let _ = self.write(key, &compiled);
        Ok(compiled)
    }

    /// An entry, if it is there and whole.
    fn read(&self, key: &str) -> Option<Compiled> {
        let path = self.folder()?.join(key);
        let bytes = fs::read(&path).ok()?;
        let compiled = Compiled::from_bytes(&bytes)?;
        // The time of the last use, for `prune`.
        let touched = fs::File::options().append(true).open(&path);
        let _ = touched.and_then(|file| file.set_modified(SystemTime::now()));
        Some(compiled)
    }

    /// Writes an entry under another name first: other programs may read and write the same one.
    fn write(&self, key: &str, compiled: &Compiled) -> io::Result<()> {
        static WRITTEN: AtomicU32 = AtomicU32::new(0);
        let Some(folder) = self.folder() else { return Ok(()) };
        fs::create_dir_all(folder)?;
        let (process, nth) = (std::process::id(), WRITTEN.fetch_add(1, Ordering::Relaxed));
        let partial = folder.join(format!("{key}.{process}.{nth}"));
        let written = fs::File::create_new(&partial)
            .and_then(|mut file| file.write_all(&compiled.to_bytes()))
            .and_then(|()| fs::rename(&partial, folder.join(key)));
        if written.is_err() {
            let _ = fs::remove_file(&partial);
        }
        written
    }
}

impl Compiled {
    /// A line with the format, the length of the log and a checksum, then the log and the code.
    fn to_bytes(&self) -> Vec<u8> {
        let length = self.log.len().to_string();
        let body = [self.log.as_bytes(), &self.code].concat();
        let checksum = Self::checksum(&length, &body);
        [format!("{FORMAT} {length} {checksum}\n").as_bytes(), &body].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|&byte| byte == b'\n')?;
        let (line, body) = (std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]);
        let (length, checksum) = line.strip_prefix(FORMAT)?.trim_start().split_once(' ')?;
        if Self::checksum(length, body) != checksum {
            return None;
        }
        let (log, code) = body.split_at_checked(length.parse().ok()?)?;
        Some(Self { log: String::from_utf8(log.to_vec()).ok()?, code: code.to_vec() })
    }

    fn checksum(length: &str, body: &[u8]) -> String {
        let mut hash = Hash::new();
        hash.add_delimited(length);
        hash.add(body);
        hash.hex()
    }
}

/// The name of an entry: a hash of everything that the compiled code depends on.
fn key(kind: &str, nvrtc: &Nvrtc, source: &Source<'_>, options: &[&str]) -> String {
    let size = fs::metadata(&nvrtc.path).map_or(0, |metadata| metadata.len());
    let library = format!("{:?} {} {size}", nvrtc.version().ok(), nvrtc.path.display());
    content_key(kind, &library, source, options)
}

fn content_key(kind: &str, library: &str, source: &Source<'_>, options: &[&str]) -> String {
    let mut hash = Hash::new();
    for part in [FORMAT, kind, library, source.name, source.text] {
        hash.add_delimited(part);
    }
    for (name, text) in included(source) {
        hash.add_delimited(name);
        hash.add_delimited(text);
    }
    for option in options {
        hash.add_delimited(option);
    }
    format!("{}.{kind}", hash.hex())
}

/// The headers that a source includes, at any depth, in name order.
pub(crate) fn included<'a>(source: &Source<'a>) -> BTreeSet<(&'a str, &'a str)> {
    let mut found = BTreeSet::new();
    let mut texts = vec![source.text];
    while let Some(text) = texts.pop() {
        let names = text.lines().filter_map(|line| line.trim_start().strip_prefix("#include"));
        for name in names.filter_map(|rest| rest.split('"').nth(1)) {
            let header = source.headers.iter().find(|(known, _)| known == name);
            if let Some((name, text)) = header
                && found.insert((name.as_str(), text.as_str()))
            {
                texts.push(text);
            }
        }
    }
    found
}

/// FNV-1a with 128 bits: the same in every build, and wide enough that no two entries meet.
struct Hash(u128);

impl Hash {
    const PRIME: u128 = 0x0100_0000_0000_0000_0000_013b;

    fn new() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(Self::PRIME);
        }
    }

    /// Adds a text and its length, which keeps neighbouring texts apart.
    fn add_delimited(&mut self, text: &str) {
        self.add(&text.len().to_le_bytes());
        self.add(text.as_bytes());
    }

    fn hex(&self) -> String {
        format!("{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn compiled() -> Compiled {
        Compiled { log: "ptxas info\n".to_owned(), code: vec![0, 10, 255, 7] }
    }

    /// Asks the cache for the same entry, and returns how often it compiled.
    fn compilations(cache: &Cache) -> u32 {
        let count = Cell::new(0);
        let compile = || {
            count.set(count.get() + 1);
            Ok(compiled())
        };
        assert_eq!(cache.get_or_compile("key", compile).unwrap(), compiled());
        count.get()
    }

    fn in_folder(folder: &Path) -> Cache {
        Cache { folder: Some(folder.to_owned()) }
    }

    #[test]
    fn an_entry_is_compiled_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = in_folder(&folder.path().join("below"));
        assert_eq!(compilations(&cache), 1);
        assert_eq!(compilations(&cache), 0);
        let files = fs::read_dir(cache.folder().unwrap()).unwrap().count();
        assert_eq!(files, 1, "nothing partial is left");
    }

    #[test]
    fn a_damaged_entry_is_compiled_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = in_folder(folder.path());
        assert_eq!(compilations(&cache), 1);
        let path = folder.path().join("key");
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, damaged).unwrap();
            assert_eq!(compilations(&cache), 1, "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(compilations(&cache), 1, "the first {at} bytes");
        }
        assert_eq!(compilations(&cache), 0);
    }

    #[test]
    fn no_folder_is_no_failure() {
        assert_eq!(compilations(&Cache { folder: None }), 1);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a file");
        fs::write(&file, "").unwrap();
        let cache = in_folder(&file.join("below"));
        assert_eq!((compilations(&cache), compilations(&cache)), (1, 1));
    }

    #[test]
    fn old_entries_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = in_folder(folder.path());
        compilations(&cache);
        cache.prune();
        assert_eq!(compilations(&cache), 0);
        let file = fs::File::options().append(true).open(folder.path().join("key")).unwrap();
        file.set_modified(SystemTime::now() - KEPT - Duration::from_secs(60)).unwrap();
        cache.prune();
        assert_eq!(compilations(&cache), 1);
    }

    #[test]
    fn keys_follow_what_is_compiled() {
        let headers = |texts: [&str; 3]| {
            let names = ["a.cuh", "b.cuh", "c.cuh"];
            names.iter().zip(texts).map(|(n, t)| (n.to_string(), t.to_owned())).collect::<Vec<_>>()
        };
        let key = |text: &str, headers: &[(String, String)], library: &str, options: &[&str]| {
            let source = Source { name: "op.cu", text, headers };
            content_key("ptx", library, &source, options)
        };
        let text = "#include \"a.cuh\"\nint x;";
        let first = headers(["#pragma once\n  #include \"b.cuh\"", "int b;", "int c;"]);
        let base = key(text, &first, "12.9", &["-a", "-b"]);
        assert_eq!(base, key(text, &first, "12.9", &["-a", "-b"]));
        let unused = headers(["#pragma once\n  #include \"b.cuh\"", "int b;", "other"]);
        assert_eq!(base, key(text, &unused, "12.9", &["-a", "-b"]), "c.cuh is not included");
        let below = headers(["#pragma once\n  #include \"b.cuh\"", "other", "int c;"]);
        let others = [
            key("#include \"a.cuh\"\nint y;", &first, "12.9", &["-a", "-b"]),
            key(text, &below, "12.9", &["-a", "-b"]),
            key(text, &first, "13.0", &["-a", "-b"]),
            key(text, &first, "12.9", &["-a"]),
            key(text, &first, "12.9", &["-a-b"]),
        ];
        assert_eq!(BTreeSet::from_iter(others.iter().chain([&base])).len(), 6);
    }
}
