//! `Host` -> `Stream`: a socket to the server, under TLS where that is asked for. IO.

use std::{
    fs,
    future::{Ready, ready},
    io,
    net::IpAddr,
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::MetadataExt,
    },
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
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{Error, PemObject},
    },
    server::ParsedCertificate,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixStream, lookup_host},
};
use tokio_postgres::tls;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::bytes::BytesMut;

use super::{
    binding::end_point,
    fault::{Fault, is_network, tls_mend},
    pace::Received,
    url::{ChannelBinding, Host, Patience, Place, Roots, SslMode, Target, Tls},
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

/// Connects, and agrees on TLS. The caller bounds the time.
pub(crate) async fn connect(target: &Target, host: &Host) -> Result<Stream, SourceError> {
    let stream = connect_stream(target, host).await?;
    if target.channel_binding == ChannelBinding::Require && stream.end_point().is_none() {
        let why = match stream {
            Stream::Tls(_) => "the server's certificate is signed without a hash; have it signed by RSA or ECDSA",
            _ => "the connection is not under TLS; turn it on at the server, and say sslmode=verify-full",
        };
        return Err(Fault::NotBound { address: address(host), why }.refused());
    }
    Ok(stream)
}

async fn connect_stream(target: &Target, host: &Host) -> Result<Stream, SourceError> {
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

    /// What SCRAM can be bound to.
    pub(crate) fn end_point(&self) -> Option<Vec<u8>> {
        let Stream::Tls(tls) = self else { return None };
        end_point(tls.get_ref().1.peer_certificates()?.first()?)
    }
}

impl tls::TlsStream for Stream {
    fn channel_binding(&self) -> tls::ChannelBinding {
        self.end_point().map_or_else(tls::ChannelBinding::none, tls::ChannelBinding::tls_server_end_point)
    }
}

/// Hands tokio-postgres a stream whose TLS, if any, is there already: only of one that its own TLS made does it ask what
/// SCRAM can be bound to.
pub(crate) struct Connected;

impl tls::TlsConnect<Stream> for Connected {
    type Stream = Stream;
    type Error = io::Error;
    type Future = Ready<io::Result<Stream>>;

    fn connect(self, stream: Stream) -> Self::Future {
        ready(Ok(stream))
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
    let unacknowledged = patience.unacknowledged.as_millis().min(i32::MAX as u128) as libc::c_int;
    let options = [
        (libc::TCP_KEEPIDLE, seconds(patience.idle)),
        (libc::TCP_KEEPINTVL, seconds(patience.interval)),
        (libc::TCP_KEEPCNT, patience.count.min(127) as libc::c_int),
        (libc::TCP_USER_TIMEOUT, unacknowledged),
    ];
    let ours = options.into_iter().filter(|(_, value)| *value > 0);
    ours.into_iter().try_for_each(|(option, value)| set(fd, libc::IPPROTO_TCP, option, value))
}

fn seconds(time: Duration) -> libc::c_int {
    time.as_secs().min(32_767) as libc::c_int
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
            let mend = tls_mend(&cause).unwrap_or("see sslmode and sslrootcert in source.postgres");
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
            let read = private_key(key).map_err(|error| file_fault("sslkey", key, error))?;
            config.with_client_auth_cert(chain, read).map_err(|error| file_fault("sslkey", key, Box::new(error)))?
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

type FileError = Box<dyn std::error::Error + Send + Sync>;

/// As libpq, a key that others may use is not used.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    let found = fs::metadata(path)?;
    // A key of the system's may be read by a group of those that log in with it.
    let (forbidden, mode) = if found.uid() == 0 { (0o037, "0640") } else { (0o077, "0600") };
    if !found.is_file() {
        return Err("it is not a regular file".into());
    }
    if found.mode() & forbidden != 0 {
        return Err(format!("others may use it; chmod {mode} {}", path.display()).into());
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        Error::NoItemsFound => "there is no PEM private key in it that can be read without a passphrase".into(),
        error => error.into(),
    })
}

fn file_fault(key: &'static str, path: &Path, cause: FileError) -> SourceError {
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
    use crate::config::Secret;

    /// What the kernel says of the socket of a connection with these words.
    async fn option(words: &str, level: libc::c_int, option: libc::c_int) -> libc::c_int {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = format!("host=127.0.0.1 port={port} user=u sslmode=disable {words}");
        let target = Target::parse(&Secret::from(target)).unwrap();
        let Stream::Tcp(tcp) = connect(&target, &target.hosts[0]).await.unwrap() else { panic!("it is TCP") };
        let (mut value, mut len) = (0, size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: the kernel writes at most `len` bytes into `value`.
        let got = unsafe { libc::getsockopt(tcp.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut len) };
        assert_eq!(got, 0);
        value
    }

    #[tokio::test]
    async fn the_kernel_is_told_how_patient_to_be() {
        let words = "keepalives_idle=33 keepalives_interval=4 keepalives_count=5 tcp_user_timeout=6789";
        let zeros = "keepalives_idle=0 keepalives_interval=0 keepalives_count=0 tcp_user_timeout=0";
        let tcp = libc::IPPROTO_TCP;
        for (level, name, ours, told) in [
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1, 1),
            (tcp, libc::TCP_KEEPIDLE, 10, 33),
            (tcp, libc::TCP_KEEPINTVL, 5, 4),
            (tcp, libc::TCP_KEEPCNT, 3, 5),
            (tcp, libc::TCP_USER_TIMEOUT, 20_000, 6789),
        ] {
            assert_eq!(option("", level, name).await, ours);
            assert_eq!(option(words, level, name).await, told);
            // The system's own: whatever it is, none of the two.
            let system = option(zeros, level, name).await;
            assert!(level == libc::SOL_SOCKET || (system != ours && system != told), "{system}");
        }
        assert_eq!(option("keepalives=0", libc::SOL_SOCKET, libc::SO_KEEPALIVE).await, 0);
    }

    #[test]
    fn a_key_that_others_may_use_is_refused_as_libpq_refuses_it() {
        use std::os::unix::fs::{PermissionsExt, chown};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let says = |mode: u32| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            private_key(&path).map(drop).map_err(|error| error.to_string())
        };
        assert!(private_key(&path).unwrap_err().to_string().contains("No such file"));
        fs::write(&path, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        assert_eq!(says(0o600), Ok(()));
        assert_eq!(says(0o400), Ok(()));
        assert!(says(0o604).unwrap_err().contains("others may use it; chmod 06"));
        // Only root may give a file away; anybody else owns it and is held to the stricter rule.
        let root = fs::metadata(&path).unwrap().uid() == 0;
        assert_eq!(says(0o640).is_ok(), root);
        if root {
            chown(&path, Some(65_534), None).unwrap();
            assert!(says(0o640).unwrap_err().contains("chmod 0600"));
            assert_eq!(says(0o600), Ok(()));
        }
        fs::write(&path, "no key").unwrap();
        assert!(says(0o600).unwrap_err().contains("no PEM private key"));
        assert!(private_key(dir.path()).unwrap_err().to_string().contains("not a regular file"));
    }

    #[test]
    fn tcp_info_has_the_kernels_layout() {
        assert_eq!(std::mem::offset_of!(TcpInfo, tcpi_advmss), 8 + 4 * 19);
        assert_eq!(std::mem::offset_of!(TcpInfo, tcpi_bytes_received), 128);
        assert_eq!(std::mem::offset_of!(TcpInfo, tcpi_data_segs_in), 152);
    }
}
