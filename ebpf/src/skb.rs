//! The packet buffer: reads, writes and checksum updates.
//!
//! All of it goes through helpers, which reach the bytes wherever they lie (linear or in pages), copy a shared buffer
//! only when it is really written, and know what the checksum field of an unfinished packet means. The programs hold no
//! packet pointers, so the verifier has none to prove.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, bpf_sock},
    helpers::generated::{
        bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_sk_fullsock, bpf_skb_adjust_room,
        bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
    maps::ProgramArray,
    programs::TcContext,
};

use crate::csum::Diff;

/// How a layer-4 checksum covers what changed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cover {
    /// As bytes of the segment itself.
    Body,
    /// Through the pseudo header.
    PseudoHeader,
}

/// The packet that a program was called for.
#[derive(Clone, Copy)]
pub struct Skb(*mut __sk_buff);

/// Reads one field of the context. Volatile: the verifier wants each read as it is written, not merged with others.
macro_rules! context_field {
    ($($(#[$meta:meta])* $name:ident;)*) => {$(
        $(#[$meta])*
        #[inline(always)]
        pub fn $name(self) -> u32 {
            // SAFETY: the context is valid while the program runs.
            unsafe { (&raw const (*self.0).$name).read_volatile() }
        }
    )*};
}

impl Skb {
    /// The buffer behind aya's context.
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self(ctx.skb.skb)
    }

    /// The buffer as aya has it, for its log.
    #[inline(always)]
    pub fn context(self) -> TcContext {
        TcContext::new(self.0)
    }

    context_field! {
        /// Bytes from the start of the link's header.
        len;
        /// `EtherType` as it lies in the packet (network order).
        protocol;
        /// Not zero: an 802.1Q tag is kept beside the packet.
        vlan_present;
        /// The link.
        ifindex;
        /// Not zero: several segments in one buffer.
        gso_size;
    }

    /// Reads a value of plain bytes at an offset.
    #[inline(always)]
    pub fn load<T: Copy>(self, at: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes all bytes of `value` or says that it did not.
        let failed = unsafe { bpf_skb_load_bytes(self.0.cast(), at, value.as_mut_ptr().cast(), size_of::<T>() as u32) };
        // SAFETY: written above; `T` is plain bytes.
        (failed == 0).then(|| unsafe { value.assume_init() })
    }

    /// Reads `len` bytes at an offset to a place.
    ///
    /// # Safety
    /// `to` has room for `len` bytes.
    #[inline(always)]
    pub unsafe fn load_to(self, at: u32, to: *mut u8, len: u32) -> bool {
        // SAFETY: the caller's promise.
        unsafe { bpf_skb_load_bytes(self.0.cast(), at, to.cast(), len) == 0 }
    }

    /// Writes a value of plain bytes at an offset; checksums are the caller's business.
    #[inline(always)]
    pub fn store<T: Copy>(self, at: u32, value: &T) -> bool {
        // SAFETY: `value` is readable; the helper checks the packet's bounds.
        unsafe { self.store_from(at, core::ptr::from_ref(value).cast(), size_of::<T>() as u32, 0) }
    }

    /// As [`Self::store`]; the sum that a network card took of the whole packet follows. For bytes whose change no
    /// checksum inside the packet makes up for.
    #[inline(always)]
    pub fn store_uncovered<T: Copy>(self, at: u32, value: &T) -> bool {
        let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
        // SAFETY: as in `store`.
        unsafe { self.store_from(at, core::ptr::from_ref(value).cast(), size_of::<T>() as u32, flags) }
    }

    /// As [`Self::store_uncovered`], from a place.
    ///
    /// # Safety
    /// `from` holds `len` bytes.
    #[inline(always)]
    pub unsafe fn store_bytes(self, at: u32, from: *const u8, len: u32) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.store_from(at, from, len, u64::from(BPF_F_RECOMPUTE_CSUM)) }
    }

    /// As [`Self::store`], from a place.
    ///
    /// # Safety
    /// `from` holds `len` bytes.
    #[inline(always)]
    pub unsafe fn store_covered(self, at: u32, from: *const u8, len: u32) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.store_from(at, from, len, 0) }
    }

    #[inline(always)]
    unsafe fn store_from(self, at: u32, from: *const u8, len: u32, flags: u64) -> bool {
        // SAFETY: the caller's promise; the helper checks the packet's bounds.
        unsafe { bpf_skb_store_bytes(self.0.cast(), at, from.cast(), len, flags) == 0 }
    }

    /// Updates an IPv4 header's checksum at an offset for one word that changes.
    #[inline(always)]
    pub fn update_header_checksum(self, at: u32, from: u32, to: u32) -> bool {
        // SAFETY: the helper checks the packet's bounds.
        unsafe { bpf_l3_csum_replace(self.0.cast(), at, from as u64, to as u64, 4) == 0 }
    }

    /// Updates a layer-4 checksum at an offset. On a packet whose checksum is not finished yet only a change of
    /// the pseudo header counts, which the helper knows. `zero_is_none`: UDP's rule that zero means no checksum.
    #[inline(always)]
    pub fn update_checksum(self, at: u32, diff: Diff, cover: Cover, zero_is_none: bool) -> bool {
        let mut flags = if cover == Cover::PseudoHeader { BPF_F_PSEUDO_HDR } else { 0 };
        if zero_is_none {
            flags |= BPF_F_MARK_MANGLED_0;
        }
        // SAFETY: the helper checks the packet's bounds. Size 0 in the flags: the difference is given as a sum.
        unsafe { bpf_l4_csum_replace(self.0.cast(), at, 0, diff.sum() as u64, u64::from(flags)) == 0 }
    }

    /// Cuts or grows the packet to `len` bytes, and throws away what the sender wanted a network card to do with it
    /// (checksum, segmentation): what is written afterwards goes out as it is written. Addresses of the link's header
    /// survive, nothing else.
    ///
    /// An unfinished checksum is forgotten by the kernel only when the start of the sum leaves the packet at its
    /// front. So it gets [`Self::SHED`] bytes more at its end first, and loses them behind the link's header.
    #[inline(always)]
    pub fn reshape(self, len: u32) -> bool {
        const BPF_ADJ_ROOM_MAC: u32 = 1;
        // SAFETY: plain helper calls; both check their arguments.
        unsafe {
            bpf_skb_change_tail(self.0, len + Self::SHED.cast_unsigned(), 0) == 0
                && bpf_skb_adjust_room(self.0, -Self::SHED, BPF_ADJ_ROOM_MAC, 0) == 0
        }
    }

    /// More bytes than lie before any checksummed part: link, IP header and options.
    const SHED: i32 = 256;

    /// The verdict that sends the packet back: out of its link, or with `BPF_F_INGRESS` as if received there.
    #[inline(always)]
    pub fn turn_back(self, flags: u32) -> i32 {
        // SAFETY: a plain helper call.
        unsafe { bpf_redirect(self.ifindex(), u64::from(flags)) as i32 }
    }

    /// Goes on with another program, and does not return; it does where there is none.
    #[inline(always)]
    pub fn continue_with(self, programs: &ProgramArray, index: u32) {
        // SAFETY: nothing here waits to be dropped.
        unsafe { programs.tail_call(&self.context(), index) };
    }

    /// Whether the packet still carries the socket that sent it.
    #[inline(always)]
    pub fn has_socket(self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe { !(&raw const (*self.0).__bindgen_anon_2.sk).read_volatile().is_null() }
    }

    /// The socket that sent the packet, if it still carries one that is complete.
    #[inline(always)]
    pub fn socket(self) -> Option<*mut bpf_sock> {
        // SAFETY: the context is valid; the helper takes what is not null.
        unsafe {
            let sk = (&raw const (*self.0).__bindgen_anon_2.sk).read_volatile();
            if sk.is_null() {
                return None;
            }
            let full = bpf_sk_fullsock(sk);
            (!full.is_null()).then_some(full)
        }
    }
}
