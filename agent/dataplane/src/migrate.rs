//! From what is pinned to this agent's maps and programs, without a moment in which packets meet neither the old ones nor
//! the new ones.
//!
//! Layouts are additive, so the rows of another one are read by their common beginning. When a pinned map is not of the
//! wanted shape (another layout, other limits), its successor is made beside it:
//!
//! ```text
//! maps/        in force, of another shape     maps/        in force           maps/        in force
//! maps_next/   being filled            ──►    maps_next/   the old ones ──►   (gone)
//!              1 load, copy, exchange         exchanged                       3 load, exchange programs
//!                programs, copy flows         2 atomically                      again, remove
//! ```
//!
//! In step 1 both sets of flow maps are in use: the programs of that step read a flow that they do not know from the old map and
//! write what is new to both. So the old maps stay complete until step 2, and a crash before it leaves them in force; a
//! crash after it leaves complete new ones.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use aya_obj::generated::bpf_map_type;
use culvert_abi::{Config, config};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::{
    Error,
    kernel::KernelStore,
    limits::Limits,
    object::{FLOWS, Load, Object, shapes},
    pins::{Pins, names, unpin},
    sys::{Map, Shape, Write},
};

/// Rows that are copied with one read.
const BATCH: usize = 1_024;
/// Maps whose rows the programs write: what they wrote to the old ones while hooks changed hands is copied after that.
/// Flows are copied only then, for a copy that is out of date would be worse than none.
const WRITTEN_BY_PROGRAMS: [&str; 4] = ["AFFINITY", "DATAGRAMS", "FRAGMENTS_V4", "FRAGMENTS_V6"];

/// Loads the programs on maps of the wanted shapes. `exchange` is called with programs and maps to make every hook run
/// these programs: once, or twice if maps had to be replaced.
pub fn bring_up(
    pins: &Pins,
    limits: &Limits,
    config: Config,
    mut exchange: impl FnMut(&Object, &KernelStore) -> Result<(), Error>,
) -> Result<Object, Error> {
    let (maps, next) = (pins.maps(), pins.maps_next());
    let wanted = shapes(limits)?;
    remove(&next)?;
    let misfits = misfits(&maps, &wanted)?;
    if !misfits.is_empty() {
        tracing::info!(maps = ?misfits, "pinned maps have another shape; their rows are moved to new ones");
        replace(&maps, &next, &wanted, limits, config, &mut exchange)?;
    }
    let object = Object::load(Load { limits, config, maps: &maps, previous: None })?;
    exchange(&object, &KernelStore::open(&maps)?)?;
    remove(&next)?;
    Ok(object)
}

/// Pinned maps that are not of the wanted shape, by name.
fn misfits(maps: &Path, wanted: &BTreeMap<String, Shape>) -> Result<Vec<String>, Error> {
    let mut misfits = Vec::new();
    for (name, shape) in wanted {
        if open(maps, name)?.is_some_and(|map| map.shape() != *shape) {
            misfits.push(name.clone());
        }
    }
    Ok(misfits)
}

/// Steps 1 and 2.
fn replace(
    maps: &Path,
    next: &Path,
    wanted: &BTreeMap<String, Shape>,
    limits: &Limits,
    config: Config,
    exchange: &mut impl FnMut(&Object, &KernelStore) -> Result<(), Error>,
) -> Result<(), Error> {
    fs::create_dir_all(next).map_err(Error::at(next))?;
    let mut old = BTreeMap::new();
    for (name, shape) in wanted {
        match open(maps, name)? {
            // The same map in both sets.
            Some(map) if map.shape() == *shape => map.pin(&next.join(name)).map_err(Error::map(name))?,
            Some(map) => drop(old.insert(name.as_str(), map)),
            None => {}
        }
    }
    let config = Config { flags: config.flags | config::MIGRATING, ..config };
    let object = Object::load(Load { limits, config, maps: next, previous: Some(maps) })?;
    for (name, old) in old.iter().filter(|(name, _)| !FLOWS.contains(name)) {
        copy(name, old, next, Write::Any)?;
    }
    exchange(&object, &KernelStore::open(next)?)?;
    for (name, old) in old.iter().filter(|(name, _)| FLOWS.contains(name) || WRITTEN_BY_PROGRAMS.contains(name)) {
        copy(name, old, next, Write::New)?;
    }
    renameat_with(CWD, maps, CWD, next, RenameFlags::EXCHANGE).map_err(|error| Error::at(next)(error.into()))
}

/// Copies the rows of a map to its successor; what does not fit there is left out.
fn copy(name: &str, old: &Map, next: &Path, write: Write) -> Result<(), Error> {
    let new = open(next, name)?.ok_or_else(|| Error::NoMap(name.to_owned()))?;
    if !same_rows(old.shape(), new.shape()) {
        tracing::warn!(map = name, "the rows of this map cannot be moved; it begins empty");
        return Ok(());
    }
    let (mut batch, mut value, mut lost) = (old.walk(BATCH), vec![0; new.row_size()], 0_usize);
    loop {
        let more = old.next_batch(&mut batch).map_err(Error::map(name))?;
        for (key, row) in batch.rows(old) {
            // Arrays are full of rows that nobody wrote, and so is a new one.
            if row.iter().all(|byte| *byte == 0) && is_array(old.shape()) {
                continue;
            }
            convert(row, old.shape(), &mut value, new.shape());
            match new.update(key, &value, write) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                // The new map holds fewer rows.
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) => lost += 1,
                result => result.map_err(Error::map(name))?,
            }
        }
        if !more {
            break;
        }
    }
    if lost > 0 {
        tracing::warn!(map = name, rows = lost, "the map has become too small for all of its rows");
    }
    Ok(())
}

/// Whether rows of one map mean the same in the other. Socket storage and ring buffers have none that could be read.
fn same_rows(old: Shape, new: Shape) -> bool {
    let readable = !new.is(bpf_map_type::BPF_MAP_TYPE_SK_STORAGE) && !new.is(bpf_map_type::BPF_MAP_TYPE_RINGBUF);
    readable && old.kind == new.kind && old.key == new.key
}

fn is_array(shape: Shape) -> bool {
    shape.per_cpu() || shape.is(bpf_map_type::BPF_MAP_TYPE_ARRAY)
}

/// A row of another layout: what is missing is zero, what is too much is left out. Per-CPU rows are a value for each
/// CPU, each rounded up to 8 bytes.
fn convert(row: &[u8], old: Shape, value: &mut [u8], new: Shape) {
    let stride = |shape: Shape| if shape.per_cpu() { shape.value.next_multiple_of(8) } else { shape.value } as usize;
    value.fill(0);
    for (from, to) in row.chunks(stride(old).max(1)).zip(value.chunks_mut(stride(new).max(1))) {
        let length = from.len().min(to.len());
        to[..length].copy_from_slice(&from[..length]);
    }
}

fn open(directory: &Path, name: &str) -> Result<Option<Map>, Error> {
    Map::open(&directory.join(name)).map_err(Error::map(name))
}

/// Removes a directory of pins, if it is there.
pub fn remove(directory: &PathBuf) -> Result<(), Error> {
    for name in names(directory)? {
        unpin(&directory.join(name))?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::at(directory)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(kind: bpf_map_type, value: u32) -> Shape {
        Shape { kind: kind as u32, key: 4, value, rows: 1, flags: 0 }
    }

    #[test]
    fn rows_grow_and_shrink_at_their_end() {
        let hash = bpf_map_type::BPF_MAP_TYPE_LRU_HASH;
        let mut grown = [9; 6];
        convert(&[1, 2, 3, 4], shape(hash, 4), &mut grown, shape(hash, 6));
        assert_eq!(grown, [1, 2, 3, 4, 0, 0]);
        let mut shrunk = [9; 2];
        convert(&[1, 2, 3, 4], shape(hash, 4), &mut shrunk, shape(hash, 2));
        assert_eq!(shrunk, [1, 2]);
    }

    #[test]
    fn each_cpu_keeps_its_own_value() {
        let array = bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY;
        let row: Vec<u8> = (1..=16).collect();
        let mut value = [0; 32];
        convert(&row, shape(array, 8), &mut value, shape(array, 12));
        assert_eq!(value[..8], row[..8]);
        assert_eq!(value[16..24], row[8..]);
        assert_eq!(value[8..16], [0; 8]);
    }

    #[test]
    fn keys_and_types_must_agree() {
        let (hash, lru) = (bpf_map_type::BPF_MAP_TYPE_HASH, bpf_map_type::BPF_MAP_TYPE_LRU_HASH);
        assert!(same_rows(shape(lru, 64), shape(lru, 72)));
        assert!(!same_rows(shape(hash, 64), shape(lru, 64)));
        assert!(!same_rows(shape(lru, 64), Shape { key: 8, ..shape(lru, 64) }));
        assert!(!same_rows(
            shape(bpf_map_type::BPF_MAP_TYPE_SK_STORAGE, 4),
            shape(bpf_map_type::BPF_MAP_TYPE_SK_STORAGE, 8)
        ));
    }
}
