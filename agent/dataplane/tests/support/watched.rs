//! A fake kernel that is looked at after every single write, as traffic does.

use std::io;

use culvert_dataplane::{
    fake::FakeStore,
    store::{Cursor, Map, Store},
};

use super::assert_serves;

/// The store, and whether it is watched.
#[derive(Default)]
pub struct Watched(pub FakeStore);

impl Watched {
    fn after<T>(&self, result: T) -> T {
        assert_serves(&self.0);
        result
    }
}

impl Store for Watched {
    fn put(&mut self, map: Map, key: &[u8], value: &[u8]) -> io::Result<()> {
        let result = self.0.put(map, key, value);
        self.after(result)
    }

    fn insert(&mut self, map: Map, key: &[u8], value: &[u8]) -> io::Result<bool> {
        let result = self.0.insert(map, key, value);
        self.after(result)
    }

    fn delete(&mut self, map: Map, key: &[u8]) -> io::Result<()> {
        let result = self.0.delete(map, key);
        self.after(result)
    }

    fn get(&self, map: Map, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.0.get(map, key)
    }

    fn for_each(&self, map: Map, row: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<()> {
        self.0.for_each(map, row)
    }

    fn scan(&self, map: Map, at: &mut Cursor, limit: usize, row: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<bool> {
        self.0.scan(map, at, limit, row)
    }

    fn capacity(&self, map: Map) -> u32 {
        self.0.capacity(map)
    }

    fn table(&self, index: u32) -> u64 {
        self.0.table(index)
    }

    fn publish_table(&mut self, index: u32, word: u64) {
        self.0.publish_table(index, word);
        self.after(());
    }

    fn table_capacity(&self) -> u32 {
        self.0.table_capacity()
    }

    fn write_slab(&mut self, base: u32, units: &[u16]) -> io::Result<()> {
        let result = self.0.write_slab(base, units);
        self.after(result)
    }

    fn read_slab(&self, base: u32, count: usize) -> io::Result<Vec<u16>> {
        self.0.read_slab(base, count)
    }

    fn slab_capacity(&self) -> u32 {
        self.0.slab_capacity()
    }
}
