//! The programs and maps in the kernel, loaded for one test and gone with it.

use std::borrow::BorrowMut;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::{CgroupAttachMode, Program};
use aya::{Ebpf, EbpfLoader, Pod, VerifierLogLevel};
use culvert_abi::{AnnouncedCounters, AnnouncedKey, Config, FrontendKey, Reason, ServiceCounters, V4, V6, view};
use culvert_dataplane::object::OBJECT;

use super::{Announced, Backend, Frontend, Link, View, World, slab};

/// The loaded object.
pub struct Kernel {
    object: Ebpf,
    world: World,
}

impl Kernel {
    /// Creates the maps, with `sizes` where the programs' own are not wanted, and loads no program yet.
    pub fn open(config: Config, sizes: &[(&str, u32)]) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader.override_global("CONFIG", &config, true).verifier_log_level(VerifierLogLevel::STATS);
        for (map, size) in sizes {
            loader.map_max_entries(map, *size);
        }
        let object = loader.load(OBJECT).context("the kernel object")?;
        Ok(Self { object, world: World::default() })
    }

    /// The object, for what this type does not offer.
    pub fn object(&mut self) -> &mut Ebpf {
        &mut self.object
    }

    /// Loads every socket program and attaches it to a cgroup. They are detached when the object is dropped.
    pub fn attach_sockets(&mut self, cgroup: &Path) -> Result<()> {
        let directory = std::fs::File::open(cgroup).with_context(|| cgroup.display().to_string())?;
        let mut attached = 0;
        for (name, program) in self.object.programs_mut() {
            let Program::CgroupSockAddr(program) = program else { continue };
            program.load().with_context(|| name.to_owned())?;
            program.attach(&directory, CgroupAttachMode::Single).with_context(|| name.to_owned())?;
            attached += 1;
        }
        ensure!(attached == 8, "{attached} socket programs instead of 8");
        Ok(())
    }

    /// Makes the maps hold `world`, in an order that is safe under traffic: what is pointed to comes first.
    pub fn write(&mut self, world: &World) -> Result<()> {
        let old = std::mem::take(&mut self.world);
        self.write_backends(&old.backends, &world.backends)?;
        if old.tables != world.tables {
            self.write_tables(&old, world)?;
        }
        self.write_ranges(&old, world)?;
        self.write_links(&old.links, &world.links)?;
        self.write_frontends(&old.frontends, &world.frontends)?;
        self.write_addresses(&old.addresses, &world.addresses)?;
        self.write_announced(&old.announced, &world.announced)?;
        self.world = world.clone();
        Ok(())
    }

    /// How often a reason was counted, over all CPUs.
    pub fn reason(&self, reason: Reason) -> Result<u64> {
        let map: PerCpuArray<_, u64> = self.object.map("REASONS").context("REASONS")?.try_into()?;
        Ok(map.get(&(reason as u32), 0)?.iter().sum())
    }

    /// The counters of a Service, over all CPUs.
    pub fn service(&self, id: u32) -> Result<ServiceCounters> {
        let map: PerCpuArray<_, ServiceCounters> =
            self.object.map("SERVICE_COUNTERS").context("SERVICE_COUNTERS")?.try_into()?;
        let mut sum = ServiceCounters::zeroed();
        for cpu in map.get(&id, 0)?.iter() {
            sum.connections += cpu.connections;
            sum.packets += cpu.packets;
            sum.bytes += cpu.bytes;
            sum.reply_packets += cpu.reply_packets;
            sum.reply_bytes += cpu.reply_bytes;
            sum.rejected += cpu.rejected;
            sum.dropped += cpu.dropped;
        }
        Ok(sum)
    }

    /// A hash map (or LRU map) by name.
    pub fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> Result<HashMap<&mut MapData, K, V>> {
        Ok(self.object.map_mut(name).with_context(|| name.to_owned())?.try_into()?)
    }

    /// An array map by name.
    pub fn array<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        Ok(self.object.map_mut(name).with_context(|| name.to_owned())?.try_into()?)
    }

    fn write_backends(&mut self, old: &BTreeMap<u32, Backend>, new: &BTreeMap<u32, Backend>) -> Result<()> {
        for (id, backend) in new.iter().filter(|(id, backend)| old.get(id) != Some(backend)) {
            self.put_backend(*id, backend)?;
        }
        for (id, backend) in old.iter().filter(|(id, _)| !new.contains_key(id)) {
            self.put_backend(*id, &Backend { flags: 0, ..*backend })?;
        }
        Ok(())
    }

    /// Changes one backend alone.
    pub fn put_backend(&mut self, id: u32, backend: &Backend) -> Result<()> {
        fn row<const W: usize>(backend: &Backend) -> Result<culvert_abi::Backend<W>> {
            Ok(culvert_abi::Backend {
                addr: words(backend.at.ip())?,
                port: backend.at.port().to_be(),
                flags: backend.flags,
                generation: backend.generation,
                service: backend.service,
            })
        }
        self.world.backends.insert(id, *backend);
        match backend.at {
            SocketAddr::V4(_) => self.array("BACKENDS_V4")?.set(id, row::<V4>(backend)?, 0)?,
            SocketAddr::V6(_) => self.array("BACKENDS_V6")?.set(id, row::<V6>(backend)?, 0)?,
        }
        Ok(())
    }

    fn write_tables(&mut self, old: &World, new: &World) -> Result<()> {
        let slab = slab::lay_out(&new.tables);
        let mut pages = self.array::<[u16; culvert_abi::PAGE_UNITS]>("SLAB")?;
        for (i, page) in slab.pages.into_iter().enumerate() {
            pages.set(i as u32, page, 0)?;
        }
        let mut tables = self.array("TABLES")?;
        for index in old.tables.keys().chain(new.tables.keys()) {
            tables.set(*index, slab.descriptors.get(index).copied().unwrap_or(0), 0)?;
        }
        Ok(())
    }

    fn write_frontends(
        &mut self,
        old: &BTreeMap<super::FrontendName, Frontend>,
        new: &BTreeMap<super::FrontendName, Frontend>,
    ) -> Result<()> {
        fn key<const W: usize>((at, proto): &super::FrontendName) -> Result<FrontendKey<W>> {
            Ok(FrontendKey { addr: words(at.ip())?, port: at.port().to_be(), proto: *proto, zero: 0 })
        }
        let (old4, old6) = by_family(old, |(at, _)| at.ip());
        let (new4, new6) = by_family(new, |(at, _)| at.ip());
        replace(self.hash("FRONTENDS_V4")?, &old4, &new4, key::<V4>, frontend_row)?;
        replace(self.hash("FRONTENDS_V6")?, &old6, &new6, key::<V6>, frontend_row)
    }

    fn write_addresses(&mut self, old: &BTreeMap<IpAddr, u32>, new: &BTreeMap<IpAddr, u32>) -> Result<()> {
        let (old4, old6) = by_family(old, |ip| *ip);
        let (new4, new6) = by_family(new, |ip| *ip);
        replace(self.hash("ADDRESSES_V4")?, &old4, &new4, |ip| words::<V4>(*ip), |flags| *flags)?;
        replace(self.hash("ADDRESSES_V6")?, &old6, &new6, |ip| words::<V6>(*ip), |flags| *flags)
    }

    /// Changes the links alone.
    pub fn put_links(&mut self, links: &BTreeMap<u32, Link>) -> Result<()> {
        let old = std::mem::replace(&mut self.world.links, links.clone());
        self.write_links(&old, links)
    }

    fn write_links(&mut self, old: &BTreeMap<u32, Link>, new: &BTreeMap<u32, Link>) -> Result<()> {
        let row = |link: &Link| culvert_abi::Link {
            v6: link
                .v6
                .octets()
                .as_chunks()
                .0
                .try_into()
                .map_or([0; 4], |words: [[u8; 4]; 4]| words.map(u32::from_ne_bytes)),
            v4: u32::from_ne_bytes(link.v4.octets()),
            flags: link.flags,
            bridge: halves(link.bridge),
            zero: 0,
            mac: halves(link.mac),
            zero_2: 0,
        };
        let (old, new) = (old.iter().collect(), new.iter().collect());
        replace(self.hash("LINKS")?, &old, &new, |ifindex| Ok(*ifindex), row)
    }

    fn write_announced(
        &mut self,
        old: &BTreeMap<(IpAddr, u32), Announced>,
        new: &BTreeMap<(IpAddr, u32), Announced>,
    ) -> Result<()> {
        let row = |row: &Announced| culvert_abi::Announced {
            until: row.until,
            flags: row.flags,
            before: row.before,
            before_until: row.before_until,
            ..culvert_abi::Announced::zeroed()
        };
        let counters = |_: &Announced| AnnouncedCounters::zeroed();
        let (old, new) = (old.iter().collect(), new.iter().collect());
        // Counters begin anew with each world.
        replace(self.hash("ANNOUNCED_COUNTERS")?, &old, &BTreeMap::new(), |at| Ok(announced_key(at)), counters)?;
        replace(self.hash("ANNOUNCED_COUNTERS")?, &BTreeMap::new(), &new, |at| Ok(announced_key(at)), counters)?;
        replace(self.hash("ANNOUNCED")?, &old, &new, |at| Ok(announced_key(at)), row)
    }

    /// What was counted for an announced address.
    pub fn announced(&mut self, at: (IpAddr, u32)) -> Result<AnnouncedCounters> {
        Ok(self.hash("ANNOUNCED_COUNTERS")?.get(&announced_key(&at), 0)?)
    }

    fn write_ranges(&mut self, old: &World, new: &World) -> Result<()> {
        fn rows(world: &World) -> BTreeSet<(u32, ipnet::IpNet)> {
            world.ranges.iter().flat_map(|(id, nets)| nets.iter().map(|net| (*id, *net))).collect()
        }
        let (old, new) = (rows(old), rows(new));
        for (id, net) in new.difference(&old) {
            self.range(*id, net, true)?;
        }
        for (id, net) in old.difference(&new) {
            self.range(*id, net, false)?;
        }
        Ok(())
    }

    fn range(&mut self, id: u32, net: &ipnet::IpNet, present: bool) -> Result<()> {
        fn apply<const N: usize>(
            map: Option<&mut aya::maps::Map>,
            prefix: u32,
            data: [u8; N],
            present: bool,
        ) -> Result<()>
        where
            [u8; N]: Pod,
        {
            let mut map: LpmTrie<_, [u8; N], u32> = map.context("RANGES")?.try_into()?;
            let key = Key::new(prefix, data);
            if present {
                map.insert(&key, 1, 0)?;
            } else {
                map.remove(&key)?;
            }
            Ok(())
        }
        let prefix = 32 + u32::from(net.prefix_len());
        let mut data = id.to_ne_bytes().to_vec();
        match net.network() {
            IpAddr::V4(ip) => {
                data.extend(ip.octets());
                let data: [u8; 8] = data.try_into().unwrap_or_default();
                apply(self.object.map_mut("RANGES_V4"), prefix, data, present)
            }
            IpAddr::V6(ip) => {
                data.extend(ip.octets());
                let data: [u8; 20] = data.try_into().unwrap_or_default();
                apply(self.object.map_mut("RANGES_V6"), prefix, data, present)
            }
        }
    }
}

/// The key of an announced address.
fn announced_key((ip, ifindex): &(IpAddr, u32)) -> AnnouncedKey {
    let (addr, family) = match ip {
        IpAddr::V4(ip) => ([u32::from_ne_bytes(ip.octets()), 0, 0, 0], 4),
        IpAddr::V6(ip) => {
            let octets = ip.octets();
            (std::array::from_fn(|i| u32::from_ne_bytes(std::array::from_fn(|k| octets[4 * i + k]))), 6)
        }
    };
    AnnouncedKey { addr, family, ifindex: *ifindex }
}

/// A link address as the maps have it.
fn halves(mac: [u8; 6]) -> [u16; 3] {
    std::array::from_fn(|i| u16::from_ne_bytes([mac[2 * i], mac[2 * i + 1]]))
}

/// The address as words in network order.
pub fn words<const W: usize>(ip: IpAddr) -> Result<[u32; W]> {
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (chunks, _) = octets.as_chunks();
    let words: Vec<u32> = chunks.iter().map(|bytes| u32::from_ne_bytes(*bytes)).collect();
    match words.try_into() {
        Ok(words) => Ok(words),
        Err(_) => bail!("{ip} is of the other family"),
    }
}

fn frontend_row(frontend: &Frontend) -> culvert_abi::Frontend {
    let row = |of: View| {
        let client = if of.replace { view::REPLACE_CLIENT } else { 0 };
        let list = if of.local_list { view::LOCAL_LIST } else { 0 };
        culvert_abi::View { table: of.table, verdict: of.verdict, flags: client | list, zero: 0 }
    };
    culvert_abi::Frontend {
        identity: u64::from(frontend.service),
        service: frontend.service,
        affinity_seconds: frontend.affinity,
        ranges: frontend.ranges,
        flags: culvert_abi::frontend::CLUSTER_IP,
        views: frontend.views.map(row),
    }
}

type Rows<'a, K, V> = BTreeMap<&'a K, &'a V>;

/// Splits rows by the family of an address in their keys.
fn by_family<K: Ord, V>(rows: &BTreeMap<K, V>, ip: impl Fn(&K) -> IpAddr) -> (Rows<'_, K, V>, Rows<'_, K, V>) {
    rows.iter().partition(|(key, _)| ip(key).is_ipv4())
}

/// Puts what is new or different, and removes what is not wanted any more.
fn replace<Name: Ord, Row: PartialEq, K: Pod, V: Pod>(
    mut map: HashMap<impl BorrowMut<MapData>, K, V>,
    old: &Rows<'_, Name, Row>,
    new: &Rows<'_, Name, Row>,
    key: impl Fn(&Name) -> Result<K>,
    value: impl Fn(&Row) -> V,
) -> Result<()> {
    for (name, row) in new.iter().filter(|(name, row)| old.get(*name) != Some(row)) {
        map.insert(key(name)?, value(row), 0)?;
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        map.remove(&key(name)?)?;
    }
    Ok(())
}
