//! `admin.tls` -> the certificate that the listener shows, read again when its files change.

use std::{fs, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::config::AdminTls;

/// The files, and what was in them when they last made sense.
pub(super) struct Certificate {
    files: AdminTls,
    seen: Seen,
    acceptor: TlsAcceptor,
}

/// What tells a file from the one that took its place: device, inode, size and time of change; `None` when it is not there.
type Seen = [Option<(u64, u64, u64, i64, i64)>; 2];

impl Certificate {
    /// Reads both files; the error names the key of the config.
    pub(super) fn read(files: &AdminTls) -> Result<Certificate, String> {
        // Looked at before they are read: what is written in between is seen as a change the next time.
        let seen = look(files);
        Ok(Certificate { files: files.clone(), seen, acceptor: acceptor(files)? })
    }

    /// For the next connection. Files that make no sense, such as a new certificate whose key is still to come, leave it as
    /// it was.
    pub(super) fn acceptor(&mut self) -> TlsAcceptor {
        let seen = look(&self.files);
        if seen != self.seen {
            self.seen = seen;
            match acceptor(&self.files) {
                Ok(acceptor) => {
                    info!("admin.tls: the certificate was read again");
                    self.acceptor = acceptor;
                }
                Err(error) => warn!("{error}; the certificate that was read before stays"),
            }
        }
        self.acceptor.clone()
    }
}

fn look(files: &AdminTls) -> Seen {
    [&files.certificate, &files.key].map(|path| {
        let file = fs::metadata(path).ok()?;
        Some((file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
    })
}

fn acceptor(files: &AdminTls) -> Result<TlsAcceptor, String> {
    let wrong = |key: &str, path: &Path, why: &dyn std::fmt::Display| {
        format!("`admin.tls.{key}`: cannot use {}: {why}", path.display())
    };
    let chain = CertificateDer::pem_file_iter(&files.certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| wrong("certificate", &files.certificate, &error))?;
    if chain.is_empty() {
        return Err(wrong("certificate", &files.certificate, &"there is no PEM certificate in it"));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| wrong("key", &files.key, &error))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| wrong("key", &files.key, &error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
