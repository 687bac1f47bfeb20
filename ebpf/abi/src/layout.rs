//! The promise that a type is plain bytes without padding.

/// A type that is plain old data without padding: any bytes are a value and every byte is initialised.
///
/// # Safety
/// Implemented by the `plain!` macro only, which checks the absence of padding at compile time.
pub unsafe trait Plain: Copy + 'static {
    /// The value's bytes, as they lie in a map.
    fn bytes(&self) -> &[u8] {
        // SAFETY: no padding (checked by `plain!`), so every byte is initialised; the lifetime is that of `self`.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// Reads a value from bytes that may be shorter or longer than the type: what is missing is zero, what is
    /// too much is left out. This is how a row of another (additive) layout is read.
    fn from_prefix(bytes: &[u8]) -> Self {
        let mut value = core::mem::MaybeUninit::<Self>::zeroed();
        let n = if bytes.len() < size_of::<Self>() { bytes.len() } else { size_of::<Self>() };
        // SAFETY: `n` is within both; all-zero bytes and any other bytes are a value of a plain type.
        unsafe {
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), value.as_mut_ptr().cast(), n);
            value.assume_init()
        }
    }
}

/// Declares a `repr(C)` struct as [`Plain`], after checking that its fields fill it completely.
macro_rules! plain {
    ($(#[$meta:meta])* pub struct $name:ident $(<const $w:ident: usize>)? { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name $(<const $w: usize>)? { $($(#[$fmeta])* pub $field: $ty,)* }

        impl $(<const $w: usize>)? $name $(<$w>)? {
            const NO_PADDING: () = assert!(size_of::<Self>() == 0 $(+ size_of::<$ty>())*, "padding");
        }

        // SAFETY: all fields are integers, arrays of them or other plain types, and `NO_PADDING` (forced by the
        // `plain_check!` below the declarations) holds.
        unsafe impl $(<const $w: usize>)? Plain for $name $(<$w>)? {}

        #[cfg(feature = "user")]
        // SAFETY: as for `Plain`.
        unsafe impl $(<const $w: usize>)? aya::Pod for $name $(<$w>)? {}

        impl $(<const $w: usize>)? $name $(<$w>)? {
            /// The value of all-zero bytes.
            #[inline(always)]
            pub const fn zeroed() -> Self {
                #[allow(clippy::let_unit_value)]
                let () = Self::NO_PADDING;
                // SAFETY: all-zero bytes are a value of a plain type.
                unsafe { core::mem::MaybeUninit::zeroed().assume_init() }
            }
        }
    };
}
pub(crate) use plain;
