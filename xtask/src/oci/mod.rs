//! Container images, written without a registry, a daemon or any other tool.
//!
//! An image's file is an OCI image layout and a docker-archive in one tar: `ctr images import`, `docker load`,
//! `podman load`, `kind load image-archive` and their like all take it. The same content always gives the same bytes.

mod archive;
mod layer;

pub use archive::{Archive, Config, write};
pub use layer::Layer;
use sha2::{Digest, Sha256};

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The SHA-256 of `content`, in hexadecimal digits.
pub fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}
