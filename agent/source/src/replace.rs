//! Files that survive a loss of power.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Puts a file in the place of another so that after a crash there is one of the two, whole. The directory is made if need be.
///
/// # Errors
/// What the file system says; the file is then one of the two all the same.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let directory = above(path);
    make(directory)?;
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(directory)?.sync_all()
}

/// Makes a directory, and those above it, so that they are there after a crash too.
fn make(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let above = above(directory);
    make(above)?;
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(above)?.sync_all()
}

/// The directory that a path is in.
fn above(path: &Path) -> &Path {
    path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("var/state/api-servers");
        for text in ["one\n", "two\n"] {
            replace(&file, text).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("var"), "a file").unwrap();
        assert!(replace(&dir.path().join("var/state/api-servers"), "one\n").is_err());
    }

    #[test]
    fn paths_without_a_directory_are_in_this_one() {
        for (path, directory) in [("a/b", "a"), ("a", "."), ("/a", "/"), ("../a", "..")] {
            assert_eq!(above(Path::new(path)), Path::new(directory));
        }
    }
}
