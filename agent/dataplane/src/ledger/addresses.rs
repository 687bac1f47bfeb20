//! What each address means: several Services may share one, and the node's own links may carry it.

use std::net::IpAddr;

use culvert_abi::address;

use super::{Cause, Ledger, Undo};
use crate::{
    codec::{self, Family},
    store::Store,
};

/// Who needs an address, and what its row says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressState {
    /// Frontends on it.
    pub frontends: u32,
    /// Services that want ports which nobody serves refused on it.
    pub refuse: u32,
    /// A link of this node carries it.
    pub own: bool,
    /// Its last frontend went, flows may be left.
    pub linger: bool,
    /// Bits that a restart found and that nobody has confirmed yet.
    pub kept: u32,
    /// Bits in the kernel; 0 = no row.
    pub written: u32,
}

impl AddressState {
    /// The bits that its row should have.
    pub fn flags(&self) -> u32 {
        let bit = |wanted: bool, bit: u32| if wanted { bit } else { 0 };
        let flags = bit(self.frontends > 0, address::FRONTEND)
            | bit(self.refuse > 0, address::REFUSE)
            | bit(self.own, address::SOURCE)
            | self.kept;
        flags | bit(self.linger && flags & address::FRONTEND == 0, address::LINGER)
    }
}

impl<S: Store> Ledger<S> {
    /// Changes what is known of an address; its row only with [`Ledger::write_address`].
    pub(crate) fn change_address(&mut self, at: IpAddr, change: impl FnOnce(&mut AddressState)) {
        let before = self.addresses.get(&at).copied();
        let mut state = before.unwrap_or_default();
        change(&mut state);
        let serves = (state.kept | state.written) & address::FRONTEND != 0;
        state.linger = state.frontends == 0 && (state.linger || serves);
        self.undo.push(Undo::Address(at, before));
        self.addresses.insert(at, state);
    }

    /// Writes the row of an address if it does not say what it should.
    pub(crate) fn write_address(&mut self, at: IpAddr) -> Result<(), Cause> {
        let Some(before) = self.addresses.get(&at).copied() else { return Ok(()) };
        let flags = before.flags();
        if flags == before.written && flags != 0 {
            return Ok(());
        }
        let map = Family::of(at).addresses();
        let key = codec::address_key(at);
        let row = (before.written != 0).then(|| before.written.to_ne_bytes().to_vec());
        match (flags, row) {
            (0, Some(row)) => self.delete(map, &key, row)?,
            (0, None) => {}
            (flags, row) => self.put(map, &key, &flags.to_ne_bytes(), row)?,
        }
        self.undo.push(Undo::Address(at, Some(before)));
        self.lingers |= flags & address::LINGER != 0;
        if flags == 0 {
            self.addresses.remove(&at);
        } else {
            self.addresses.insert(at, AddressState { written: flags, ..before });
        }
        Ok(())
    }

    /// Addresses that only flows need.
    pub(crate) fn lingering(&self) -> impl Iterator<Item = IpAddr> {
        let lingering = self.addresses.iter().filter(|(_, state)| state.flags() & address::LINGER != 0);
        lingering.map(|(at, _)| *at)
    }
}
