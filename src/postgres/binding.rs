//! A server's certificate -> what SCRAM is bound to, so that nobody in between can pass a log-in on. Pure.

use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};
use x509_cert::{
    Certificate,
    der::{
        Decode, SliceReader, TagNumber,
        asn1::{ContextSpecific, ObjectIdentifier},
        oid::db::rfc5912::{
            ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, ECDSA_WITH_SHA_512, ID_RSASSA_PSS, ID_SHA_1, ID_SHA_256,
            ID_SHA_384, ID_SHA_512, MD_5_WITH_RSA_ENCRYPTION, SHA_1_WITH_RSA_ENCRYPTION, SHA_256_WITH_RSA_ENCRYPTION,
            SHA_384_WITH_RSA_ENCRYPTION, SHA_512_WITH_RSA_ENCRYPTION,
        },
    },
    spki::AlgorithmIdentifierOwned,
};

/// `tls-server-end-point` of RFC 5929: the hash of the certificate, by the hash function of its signature.
///
/// `None` where the signature names no hash function, as Ed25519's.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let signature = Certificate::from_der(certificate).ok()?.signature_algorithm;
    Some(digest(hash_of(&signature)?, certificate).as_ref().to_vec())
}

fn hash_of(signature: &AlgorithmIdentifierOwned) -> Option<&'static Algorithm> {
    match signature.oid {
        ID_RSASSA_PSS => hash(pss_hash(signature)?),
        named => hash(named),
    }
}

fn hash(named: ObjectIdentifier) -> Option<&'static Algorithm> {
    match named {
        // MD5 and SHA-1 are too weak, and SHA-256 stands in for them.
        MD_5_WITH_RSA_ENCRYPTION | SHA_1_WITH_RSA_ENCRYPTION | ID_SHA_1 => Some(&SHA256),
        SHA_256_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_256 | ID_SHA_256 => Some(&SHA256),
        SHA_384_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_384 | ID_SHA_384 => Some(&SHA384),
        SHA_512_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_512 | ID_SHA_512 => Some(&SHA512),
        _ => None,
    }
}

/// RSASSA-PSS has its hash function in its parameters; SHA-1 when it is left out (RFC 4055).
fn pss_hash(signature: &AlgorithmIdentifierOwned) -> Option<ObjectIdentifier> {
    let mut parameters = SliceReader::new(signature.parameters.as_ref()?.value()).ok()?;
    let hash = ContextSpecific::<AlgorithmIdentifierOwned>::decode_explicit(&mut parameters, TagNumber::N0).ok()?;
    Some(hash.map_or(ID_SHA_1, |hash| hash.value.oid))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    #[test]
    fn a_certificate_is_hashed_as_its_signature_is() {
        let certificate = |algorithm| {
            let key = KeyPair::generate_for(algorithm).unwrap();
            CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap().der().to_vec()
        };
        for (algorithm, hash) in [(&PKCS_ECDSA_P256_SHA256, &SHA256), (&PKCS_ECDSA_P384_SHA384, &SHA384)] {
            let certificate = certificate(algorithm);
            assert_eq!(end_point(&certificate).unwrap(), digest(hash, &certificate).as_ref());
        }
        assert_eq!(end_point(&certificate(&PKCS_ED25519)), None);
        assert_eq!(end_point(b"no certificate"), None);
    }

    #[test]
    fn rsa_has_its_hash_in_its_name_or_in_its_parameters() {
        // The signature algorithms of certificates that `openssl req -x509 -newkey rsa:2048` made.
        for (der, hash) in [
            ("300d06092a864886f70d0101050500", &SHA256),
            ("300d06092a864886f70d01010d0500", &SHA512),
            (
                "304206092a864886f70d01010a3035a00f300d06096086480165030402020500a11c301a06092a864886f70d010108300d06\
                 096086480165030402020500a204020200ce",
                &SHA384,
            ),
            // All of its parameters left out: SHA-1.
            ("300d06092a864886f70d01010a3000", &SHA256),
        ] {
            let bytes: Vec<u8> =
                (0..der.len()).step_by(2).map(|at| u8::from_str_radix(&der[at..at + 2], 16).unwrap()).collect();
            let signature = AlgorithmIdentifierOwned::from_der(&bytes).unwrap();
            assert_eq!(hash_of(&signature), Some(hash), "{der}");
        }
    }
}
