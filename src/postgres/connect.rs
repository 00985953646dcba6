//! `Host` -> `Stream`: a socket to the server, under TLS where that is asked for. IO.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, RawFd},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixStream, lookup_host},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::bytes::BytesMut;

use super::{
    fault::{Fault, is_network},
    pace::Received,
    url::{Host, Patience, Place, Roots, SslMode, Target, Tls},
};
use crate::source::SourceError;

/// A connection to a server, before anybody has logged in.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// `host:port`, or the path of a socket: for people.
pub(crate) fn address(host: &Host) -> String {
    match &host.place {
        Place::Tcp(at, port) if at.contains(':') => format!("[{at}]:{port}"),
        Place::Tcp(at, port) => format!("{at}:{port}"),
        Place::Unix(path) => path.display().to_string(),
    }
}

/// Connects, and agrees on TLS. Bound by the caller.
pub(crate) async fn connect(target: &Target, host: &Host) -> Result<Stream, SourceError> {
    let unreachable = |source| Fault::Unreachable { address: address(host), source }.passing();
    match &host.place {
        Place::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix).map_err(unreachable),
        Place::Tcp(at, port) => {
            let tcp = connect_tcp(at, *port, &target.patience).await.map_err(unreachable)?;
            match target.tls.mode {
                SslMode::Disable => Ok(Stream::Tcp(tcp)),
                _ => start_tls(tcp, &target.tls, host).await,
            }
        }
    }
}

impl Stream {
    /// What the kernel has counted; `None` where reading in batches gains nothing.
    pub(crate) fn received(&self) -> Option<Received> {
        match self {
            Stream::Tcp(tcp) => tcp_received(tcp.as_raw_fd()),
            Stream::Tls(tls) => tcp_received(tls.get_ref().0.as_raw_fd()),
            Stream::Unix(_) => None,
        }
    }
}

async fn connect_tcp(at: &str, port: u16, patience: &Patience) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for addr in lookup_host((at, port)).await? {
        match TcpStream::connect(addr).await {
            Ok(tcp) => {
                tcp.set_nodelay(true)?;
                be_patient(tcp.as_raw_fd(), patience)?;
                return Ok(tcp);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// A peer that vanished is noticed by TCP itself: the stream may be quiet for hours.
fn be_patient(fd: RawFd, patience: &Patience) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, patience.keepalives.into())?;
    set(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds(patience.idle))?;
    set(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, seconds(patience.interval))?;
    set(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, patience.count.clamp(1, 127) as libc::c_int)?;
    let unacknowledged = patience.unacknowledged.as_millis().min(i32::MAX as u128) as libc::c_int;
    set(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, unacknowledged)
}

fn seconds(time: Duration) -> libc::c_int {
    time.as_secs().clamp(1, 32_767) as libc::c_int
}

fn set(fd: RawFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of `value`, which lives until the call returns.
    let done = unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The head of Linux's `struct tcp_info`, as far as we read it (`linux/tcp.h`). Older kernels fill less, newer more.
#[repr(C)]
#[derive(Default)]
struct TcpInfo {
    states: [u8; 8],
    before_advmss: [u32; 19],
    tcpi_advmss: u32,
    tcpi_reordering: u32,
    tcpi_rcv_rtt: u32,
    tcpi_rcv_space: u32,
    tcpi_total_retrans: u32,
    tcpi_pacing_rate: u64,
    tcpi_max_pacing_rate: u64,
    tcpi_bytes_acked: u64,
    tcpi_bytes_received: u64,
    tcpi_segs_out: u32,
    tcpi_segs_in: u32,
    tcpi_notsent_bytes: u32,
    tcpi_min_rtt: u32,
    tcpi_data_segs_in: u32,
}

fn tcp_received(fd: RawFd) -> Option<Received> {
    let mut info = TcpInfo::default();
    let mut len = size_of::<TcpInfo>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `info`, whose fields are integers.
    let done = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut len) };
    let whole = len as usize >= std::mem::offset_of!(TcpInfo, tcpi_data_segs_in) + size_of::<u32>();
    (done == 0 && whole).then_some(Received {
        bytes: info.tcpi_bytes_received,
        segments: info.tcpi_data_segs_in,
        segment_max: info.tcpi_advmss,
    })
}

async fn start_tls(mut tcp: TcpStream, tls: &Tls, host: &Host) -> Result<Stream, SourceError> {
    let address = || address(host);
    if !tls.direct {
        let mut request = BytesMut::new();
        postgres_protocol::message::frontend::ssl_request(&mut request);
        let unreachable = |source| Fault::Unreachable { address: address(), source }.passing();
        tcp.write_all(&request).await.map_err(unreachable)?;
        // One byte and no more: what comes after it is TLS, or an attacker's.
        match tcp.read_u8().await.map_err(unreachable)? {
            b'S' => {}
            _ if tls.mode == SslMode::Prefer => return Ok(Stream::Tcp(tcp)),
            _ => return Err(Fault::NoTls { address: address() }.refused()),
        }
    }
    let config = tls_config(tls)?;
    let name = match host.name.parse::<IpAddr>() {
        Ok(ip) => ServerName::from(ip),
        Err(_) => ServerName::try_from(host.name.clone()).map_err(|_| {
            let cause = io::Error::other(format!("{:?} is not a host name", host.name));
            Fault::Tls { address: address(), cause, mend: "name the host as its certificate does" }.refused()
        })?,
    };
    match TlsConnector::from(Arc::new(config)).connect(name, tcp).await {
        Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
        Err(cause) if tls.direct && cause.kind() == io::ErrorKind::UnexpectedEof => {
            let mend = "sslnegotiation=direct wants PostgreSQL 17 or later";
            Err(Fault::Tls { address: address(), cause, mend }.passing())
        }
        Err(source) if is_network(&source) => Err(Fault::Unreachable { address: address(), source }.passing()),
        Err(cause) => {
            let mend = match cause.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::InvalidCertificate(
                    rustls::CertificateError::NotValidForName | rustls::CertificateError::NotValidForNameContext { .. },
                )) => "connect by a name that is among the certificate's subjectAltNames, or say sslmode=verify-ca",
                Some(rustls::Error::InvalidCertificate(
                    rustls::CertificateError::Expired | rustls::CertificateError::ExpiredContext { .. },
                )) => {
                    "the server's certificate has expired: renew it there (ssl_cert_file) and reload; or a clock is wrong"
                }
                Some(rustls::Error::InvalidCertificate(_)) => "name the authority that signed it in sslrootcert",
                Some(rustls::Error::AlertReceived(_)) => "the server refuses our certificate; see sslcert and sslkey",
                _ => "see sslmode and sslrootcert in source.postgres",
            };
            Err(Fault::Tls { address: address(), cause, mend }.refused())
        }
    }
}

fn tls_config(tls: &Tls) -> Result<ClientConfig, SourceError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(Verifier::new(tls, &provider)?);
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &tls.identity {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate, "sslcert")?;
            let failed = |source| file_fault("sslkey", key, source);
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(Box::new(error)))?;
            config.with_client_auth_cert(chain, key).map_err(|error| failed(Box::new(error)))?
        }
    };
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(config)
}

fn certificates(path: &Path, key: &'static str) -> Result<Vec<CertificateDer<'static>>, SourceError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| file_fault(key, path, Box::new(error)))?;
    if certificates.is_empty() {
        return Err(file_fault(key, path, "there is no PEM certificate in it".into()));
    }
    Ok(certificates)
}

fn file_fault(key: &'static str, path: &Path, cause: Box<dyn std::error::Error + Send + Sync>) -> SourceError {
    Fault::TlsFile { key, path: path.display().to_string(), cause }.refused()
}

/// libpq's four ways to look at a server's certificate.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// `None`: whoever it is (`prefer`, `require`).
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// A self-signed certificate that is its own authority, as the Postgres manual makes one; webpki refuses those.
    trusted: Vec<CertificateDer<'static>>,
    /// `verify-full`
    name: bool,
}

impl Verifier {
    fn new(tls: &Tls, provider: &Arc<CryptoProvider>) -> Result<Verifier, SourceError> {
        let name = tls.mode == SslMode::VerifyFull;
        if tls.mode < SslMode::VerifyCa {
            return Ok(Verifier { provider: provider.clone(), chain: None, trusted: Vec::new(), name });
        }
        let default = std::env::var_os("HOME").map(|home| Path::new(&home).join(".postgresql/root.crt"));
        let file = match &tls.roots {
            Roots::File(path) => Some(path.clone()),
            Roots::Default => default.filter(|path| path.exists()),
            Roots::System => None,
        };
        let trusted = match &file {
            Some(path) => certificates(path, "sslrootcert")?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(trusted.iter().cloned());
        let path = file.as_deref().unwrap_or(Path::new("system"));
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| file_fault("sslrootcert", path, Box::new(error)))?;
        let trusted = if file.is_some() { trusted } else { Vec::new() };
        Ok(Verifier { provider: provider.clone(), chain: Some(chain), trusted, name })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::{CertificateError as Wrong, Error::InvalidCertificate};
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        if self.trusted.iter().any(|trusted| trusted == end_entity) {
            if self.name {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // webpki looks at the name last, so the chain is good.
            Err(InvalidCertificate(Wrong::NotValidForName | Wrong::NotValidForNameContext { .. })) if !self.name => {
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Unix(unix) => Pin::new(unix).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Stream::Unix(unix) => Pin::new(unix).poll_write(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Unix(unix) => Pin::new(unix).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_info_has_the_kernels_layout() {
        assert_eq!(std::mem::offset_of!(TcpInfo, tcpi_advmss), 8 + 4 * 19);
        assert_eq!(std::mem::offset_of!(TcpInfo, tcpi_bytes_received), 128);
        assert_eq!(std::mem::offset_of!(TcpInfo, tcpi_data_segs_in), 152);
    }
}
