//! An image's file: an OCI image layout (github.com/opencontainers/image-spec, image-layout.md) that is a docker-archive
//! as well, by one more file, `manifest.json`.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, IntoInnerError},
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::{layer::Layer, sha256};

/// What a container of the image runs, and what is said of it.
#[derive(Default, Clone)]
pub struct Config {
    /// The command.
    pub entrypoint: Vec<String>,
    /// Its arguments, unless others are given.
    pub arguments: Vec<String>,
    /// `NAME=VALUE`.
    pub environment: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it was made, in RFC 3339; best a time that belongs to its content, or nothing.
    pub created: Option<String>,
}

/// An image in a file.
#[derive(Debug, Clone)]
pub struct Archive {
    /// Its full name with its tag.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// The digest of its manifest: `sha256:...`.
    pub digest: String,
    /// The size of its layers in bytes, uncompressed.
    pub size: u64,
}

/// Writes an image of this machine's architecture to `path`.
///
/// # Errors
/// If a file of a layer cannot be read, or the archive not be written.
pub fn write(path: &Path, name: &str, config: &Config, layers: &[Layer]) -> Result<Archive> {
    let mut blobs = Blobs::default();
    let mut descriptors = Vec::new();
    for layer in layers {
        descriptors.push(blobs.add("application/vnd.oci.image.layer.v1.tar", layer.tar()?));
    }
    let size = descriptors.iter().filter_map(|layer| layer["size"].as_u64()).sum();
    let config = blobs.add("application/vnd.oci.image.config.v1+json", config_json(config, &descriptors)?);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": descriptors,
    });
    let mut manifest = blobs.add("application/vnd.oci.image.manifest.v1+json", serde_json::to_vec(&manifest)?);
    let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    // The first is containerd's, with the whole name; the second the specification's.
    manifest["annotations"] = json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    let docker = json!([{
        "Config": blob_path(&config),
        "RepoTags": [name],
        "Layers": descriptors.iter().map(blob_path).collect::<Vec<_>>(),
    }]);
    let files = [
        ("index.json", serde_json::to_vec(&index)?),
        ("manifest.json", serde_json::to_vec(&docker)?),
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
    ];
    blobs.write(path, &files).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Archive { name: name.to_owned(), path: path.to_owned(), digest, size })
}

fn config_json(config: &Config, layers: &[Value]) -> Result<Vec<u8>> {
    let mut json = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "User": "0",
            "Env": config.environment,
            "Entrypoint": config.entrypoint,
            "Cmd": config.arguments,
            "Labels": config.labels,
            "WorkingDir": "/",
        },
        // Layers are not compressed, so their digests are those of their tars.
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| &layer["digest"]).collect::<Vec<_>>() },
    });
    if let Some(created) = &config.created {
        json["created"] = json!(created);
    }
    Ok(serde_json::to_vec(&json)?)
}

/// Go's name of this machine's architecture, which the specification uses.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Contents by their digest, each once.
#[derive(Default)]
struct Blobs {
    contents: BTreeMap<String, Vec<u8>>,
}

impl Blobs {
    /// Adds one; gives its descriptor.
    fn add(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let digest = sha256(&content);
        let descriptor =
            json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len() });
        self.contents.insert(digest, content);
        descriptor
    }

    fn write(&self, path: &Path, files: &[(&str, Vec<u8>)]) -> Result<()> {
        let parent = path.parent().context("no directory")?;
        fs::create_dir_all(parent)?;
        // Nobody sees it before it is whole.
        let unfinished = path.with_extension(format!("unfinished-{}", process::id()));
        let mut tar = Builder::new(BufWriter::new(File::create(&unfinished)?));
        for directory in ["blobs/", "blobs/sha256/"] {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            tar.append_data(&mut header, directory, [].as_slice())?;
        }
        let blobs = self.contents.iter().map(|(digest, content)| (format!("blobs/sha256/{digest}"), content));
        for (name, content) in blobs.chain(files.iter().map(|(name, content)| ((*name).to_owned(), content))) {
            let mut header = Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, content.as_slice())?;
        }
        tar.into_inner()?.into_inner().map_err(IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&unfinished, path)?;
        Ok(())
    }
}

/// Where a descriptor's content is within the archive.
fn blob_path(descriptor: &Value) -> String {
    format!("blobs/{}", descriptor["digest"].as_str().unwrap_or_default().replace(':', "/"))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(File::open(path).unwrap());
        let mut files = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), content);
        }
        files
    }

    /// An importer follows digests from the index, or names from manifest.json: both must lead to what is there.
    #[test]
    fn every_reference_leads_to_its_content() {
        let directory = std::env::temp_dir().join(format!("culvert-oci-{}", process::id()));
        let path = directory.join("x.tar");
        let mut layer = Layer::default();
        layer.text("etc/hello", "hello");
        let config = Config { entrypoint: vec!["/hello".to_owned()], ..Config::default() };
        let archive = write(&path, "example.org/x:1", &config, &[layer]).unwrap();
        let files = files(&path);
        fs::remove_dir_all(&directory).unwrap();

        let json = |name: &str| serde_json::from_slice::<Value>(&files[name]).unwrap();
        let index = json("index.json");
        assert_eq!(index["manifests"][0]["digest"], archive.digest.as_str());
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "example.org/x:1");
        let manifest = json(&blob_path(&index["manifests"][0]));
        for descriptor in [&index["manifests"][0], &manifest["config"], &manifest["layers"][0]] {
            let content = &files[&blob_path(descriptor)];
            assert_eq!(descriptor["digest"], format!("sha256:{}", sha256(content)));
            assert_eq!(descriptor["size"], content.len());
        }
        let docker = json("manifest.json");
        assert_eq!(docker[0]["RepoTags"][0], "example.org/x:1");
        assert_eq!(docker[0]["Config"], blob_path(&manifest["config"]));
        assert_eq!(docker[0]["Layers"][0], blob_path(&manifest["layers"][0]));
        assert_eq!(json(&blob_path(&manifest["config"]))["config"]["Entrypoint"][0], "/hello");
    }
}
