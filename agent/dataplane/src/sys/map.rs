//! Maps as rows of bytes.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::OnceLock,
};

use aya_obj::generated::{BPF_ANY, BPF_NOEXIST, bpf_attr, bpf_cmd, bpf_map_info, bpf_map_type};

use super::{attr, bpf, info, open_pin, pin, raw};

/// What makes two maps interchangeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `bpf_map_type` as a number.
    pub kind: u32,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value (per-CPU maps: of one CPU).
    pub value: u32,
    /// Rows that the map can hold; ring buffers: bytes; socket storage: 0.
    pub rows: u32,
    /// Flags of creation.
    pub flags: u32,
}

impl Shape {
    /// Whether each CPU has its own value.
    pub fn per_cpu(self) -> bool {
        self.is(bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY)
    }

    /// Whether the map is of a type.
    pub fn is(self, kind: bpf_map_type) -> bool {
        self.kind == kind as u32
    }
}

/// A map. Its rows are read and written as bytes whose lengths must be those of the map.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    shape: Shape,
    row: usize,
}

/// What a write does when the row exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Replaces it.
    Any,
    /// Leaves it and fails with EEXIST.
    New,
}

/// Where a batch walk stands, and the rows of the last batch.
#[derive(Debug)]
pub struct Batch {
    /// Where the next batch starts; empty = at the first row.
    pub cursor: Vec<u8>,
    keys: Vec<u8>,
    values: Vec<u8>,
    rows: usize,
}

impl Map {
    /// Takes over a map's descriptor.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: `bpf_map_info` is made of integers and holds no pointer.
        let info: bpf_map_info = unsafe { info(&fd) }?;
        let shape = Shape {
            kind: info.type_,
            key: info.key_size,
            value: info.value_size,
            rows: info.max_entries,
            flags: info.map_flags,
        };
        let row =
            if shape.per_cpu() { shape.value.next_multiple_of(8) as usize * cpus()? } else { shape.value as usize };
        Ok(Self { fd, shape, row })
    }

    /// Opens a pinned map; `None` if nothing is pinned there.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        open_pin(path)?.map(Self::new).transpose()
    }

    /// Pins the map once more.
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        pin(&self.fd, path)
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Bytes of a row's value as they are read and written: per-CPU maps have one value for each possible CPU, each
    /// rounded up to 8 bytes.
    pub fn row_size(&self) -> usize {
        self.row
    }

    /// Reads a row into `value`; `false` if there is none.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.check(key, value.len())?;
        let mut attr = self.element(key);
        attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
        // SAFETY: key and value have the lengths of the map, checked above.
        match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes a row.
    pub fn update(&self, key: &[u8], value: &[u8], write: Write) -> io::Result<()> {
        self.check(key, value.len())?;
        let mut attr = self.element(key);
        attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_ptr() as u64;
        attr.__bindgen_anon_2.flags = match write {
            Write::Any => BPF_ANY.into(),
            Write::New => BPF_NOEXIST.into(),
        };
        // SAFETY: as in `lookup`; the kernel only reads.
        unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Deletes a row; `false` if there was none.
    pub fn delete(&self, key: &[u8]) -> io::Result<bool> {
        self.check(key, self.row)?;
        let mut attr = self.element(key);
        // SAFETY: the key has the length of the map.
        match unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A walk through all rows, about `rows` at a time. Rows that change meanwhile may be seen or not.
    pub fn walk(&self, rows: usize) -> Batch {
        let mut batch = Batch { cursor: Vec::new(), keys: Vec::new(), values: Vec::new(), rows: 0 };
        batch.resize(self, rows.max(1));
        batch
    }

    /// Reads the next rows into `batch`; `false` after the last ones (which are in `batch` nevertheless).
    pub fn next_batch(&self, batch: &mut Batch) -> io::Result<bool> {
        // The position is a bucket's number (4 bytes) in hashes and the last key elsewhere.
        let mut next = vec![0_u8; (self.shape.key as usize).max(4)];
        if !batch.cursor.is_empty() && batch.cursor.len() != next.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        loop {
            let room = batch.keys.len() / self.shape.key.max(1) as usize;
            batch.rows = 0;
            let mut attr = attr();
            attr.batch.map_fd = raw(&self.fd);
            attr.batch.in_batch = if batch.cursor.is_empty() { 0 } else { batch.cursor.as_ptr() as u64 };
            attr.batch.out_batch = next.as_mut_ptr() as u64;
            attr.batch.keys = batch.keys.as_mut_ptr() as u64;
            attr.batch.values = batch.values.as_mut_ptr() as u64;
            attr.batch.count = room as u32;
            // SAFETY: keys and values have room for `count` rows (`Batch::resize`), the positions for a key or four
            // bytes, whichever is longer.
            let result = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) };
            // SAFETY: the kernel wrote back the same variant.
            let count = unsafe { attr.batch.count } as usize;
            match result {
                Ok(_) => {
                    batch.rows = count.min(room);
                    batch.cursor = next;
                    return Ok(true);
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT) => {
                        batch.rows = count.min(room);
                        batch.cursor.clear();
                        return Ok(false);
                    }
                    // A bucket of a hash holds more rows than there is room for.
                    Some(libc::ENOSPC) => batch.resize(self, room * 2),
                    Some(libc::EINTR | libc::EAGAIN) => {}
                    _ => return Err(error),
                },
            }
        }
    }

    fn check(&self, key: &[u8], value: usize) -> io::Result<()> {
        if key.len() == self.shape.key as usize && value == self.row {
            return Ok(());
        }
        let Shape { key: want, .. } = self.shape;
        let message = format!("key of {} bytes and value of {value} where {want} and {} belong", key.len(), self.row);
        Err(io::Error::new(io::ErrorKind::InvalidInput, message))
    }

    fn element(&self, key: &[u8]) -> bpf_attr {
        let mut attr = attr();
        attr.__bindgen_anon_2.map_fd = raw(&self.fd);
        attr.__bindgen_anon_2.key = key.as_ptr() as u64;
        attr
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Batch {
    /// Keys and values of the last batch.
    pub fn rows<'a>(&'a self, map: &Map) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let keys = self.keys.chunks_exact((map.shape.key as usize).max(1));
        keys.zip(self.values.chunks_exact(map.row.max(1))).take(self.rows)
    }

    fn resize(&mut self, map: &Map, rows: usize) {
        self.keys.resize(rows * map.shape.key as usize, 0);
        self.values.resize(rows * map.row, 0);
    }
}

/// Possible CPUs: per-CPU maps hold a value for each, whether it is running or not.
pub fn cpus() -> io::Result<usize> {
    static CPUS: OnceLock<usize> = OnceLock::new();
    if let Some(cpus) = CPUS.get() {
        return Ok(*cpus);
    }
    let cpus =
        aya::util::nr_cpus().map_err(|(path, error)| io::Error::new(error.kind(), format!("{path}: {error}")))?;
    Ok(*CPUS.get_or_init(|| cpus))
}
