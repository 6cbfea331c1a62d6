//! Certificates of the lab's own.

/// An authority of the lab's own, and a server's certificate that it signed.
pub(crate) struct Certificates {
    /// What clients have to trust, as PEM.
    pub(crate) ca: String,
    /// The server's certificate, as PEM.
    pub(crate) leaf: String,
    /// Its key, as PEM.
    pub(crate) leaf_key: String,
}

impl Certificates {
    /// A server of these names.
    pub(crate) fn make(names: &[&str]) -> anyhow::Result<Self> {
        let ca_key = rcgen::KeyPair::generate()?;
        let mut ca = rcgen::CertificateParams::new(Vec::new())?;
        ca.distinguished_name
            .push(rcgen::DnType::CommonName, "the lab's own authority");
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key)?.pem();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let leaf_key = rcgen::KeyPair::generate()?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let leaf = rcgen::CertificateParams::new(names)?.signed_by(&leaf_key, &issuer)?;
        Ok(Self {
            ca: ca_pem,
            leaf: leaf.pem(),
            leaf_key: leaf_key.serialize_pem(),
        })
    }
}
