//! Owns what an address is: everybody's, a private network's, or nobody's registry.
//!
//! Refuses to be misled by the form of an address: those that hide another one count as that one, or as
//! forbidden.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where an address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zone {
    /// Anybody may have it (IANA special-purpose registries: globally reachable).
    Public,
    /// It means something on this machine or in this network only.
    Private,
    /// Nobody's registry: metadata services, multicast, and forms that hide another address.
    Forbidden,
}

/// Services that answer whoever asks with this machine's own credentials or settings: metadata of
/// Alibaba, Azure's wire server, Oracle, Tencent.
const METADATA_V4: [Ipv4Addr; 4] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(169, 254, 0, 23),
];
/// The same by IPv6: Amazon, its containers, Google, Oracle, Scaleway.
const METADATA_V6: [Ipv6Addr; 5] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
];

pub(crate) fn zone(address: IpAddr) -> Zone {
    match address {
        IpAddr::V4(address) => zone_v4(address),
        IpAddr::V6(address) => zone_v6(address),
    }
}

fn zone_v4(address: Ipv4Addr) -> Zone {
    let [a, b, c, _] = address.octets();
    if METADATA_V4.contains(&address) || a == 0 || a >= 224 {
        return Zone::Forbidden;
    }
    match (a, b, c) {
        // Metadata, name and time services of most clouds; relays of 6to4 (RFC 7526).
        (169, 254, 169 | 170) | (192, 88, 99) => Zone::Forbidden,
        // RFC 1918, loopback, link-local, shared address space (RFC 6598).
        (10 | 127, ..) | (172, 16..=31, _) | (192, 168, _) | (169, 254, _) | (100, 64..=127, _)
        // Protocol assignments, documentation, benchmarks (RFC 6890, RFC 5737, RFC 2544).
        | (192, 0, 0 | 2) | (198, 18 | 19, _) | (198, 51, 100) | (203, 0, 113) => Zone::Private,
        _ => Zone::Public,
    }
}

fn zone_v6(address: Ipv6Addr) -> Zone {
    if let Some(inner) = address.to_ipv4_mapped() {
        return zone_v4(inner);
    }
    if METADATA_V6.contains(&address) || address.is_multicast() || address.is_unspecified() {
        return Zone::Forbidden;
    }
    if address.is_loopback() {
        return Zone::Private;
    }
    match address.segments() {
        // Translation (RFC 6052): the address behind it counts.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => zone_v4(embedded(high, low)),
        // Other ways to hide an IPv4 address: compatible, local translation, Teredo, 6to4.
        [0, 0, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] | [0x2001, 0, ..] | [0x2002, ..] => {
            Zone::Forbidden
        }
        // Unique local, link-local, the site-local of old, discard, documentation; benchmarks, hash
        // identities and other assignments to protocols (RFC 2928).
        [0x2001, 1..=0x1ff | 0xdb8, ..]
        | [0xfc00..=0xfdff | 0xfe80..=0xfeff, ..]
        | [0x100, 0, 0, 0, ..]
        | [0x3fff, 0..=0xfff, ..] => Zone::Private,
        // Global unicast is what has been given out of 2000::/3.
        [0x2000..=0x3fff, ..] => Zone::Public,
        _ => Zone::Forbidden,
    }
}

fn embedded(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_address_is_seen_through() {
        for (text, expected) in [
            ("1.1.1.1", Zone::Public),
            ("100.63.255.255", Zone::Public),
            ("172.32.0.1", Zone::Public),
            ("2606:4700::1111", Zone::Public),
            ("64:ff9b::101:101", Zone::Public),
            ("127.8.8.8", Zone::Private),
            ("10.0.0.1", Zone::Private),
            ("172.31.255.255", Zone::Private),
            ("192.168.0.1", Zone::Private),
            ("100.64.0.1", Zone::Private),
            ("169.254.1.1", Zone::Private),
            ("198.18.0.1", Zone::Private),
            ("::1", Zone::Private),
            ("::ffff:10.0.0.1", Zone::Private),
            ("64:ff9b::a00:1", Zone::Private),
            ("fd12::1", Zone::Private),
            ("fe80::1", Zone::Private),
            ("fec0::1", Zone::Private),
            ("2001:2::1", Zone::Private),
            ("169.254.169.253", Zone::Forbidden),
            ("168.63.129.16", Zone::Forbidden),
            ("192.88.99.1", Zone::Forbidden),
            ("169.254.169.254", Zone::Forbidden),
            ("169.254.170.2", Zone::Forbidden),
            ("100.100.100.200", Zone::Forbidden),
            ("::ffff:169.254.169.254", Zone::Forbidden),
            ("64:ff9b::a9fe:a9fe", Zone::Forbidden),
            ("fd00:ec2::254", Zone::Forbidden),
            ("0.0.0.0", Zone::Forbidden),
            ("0.1.2.3", Zone::Forbidden),
            ("224.0.0.1", Zone::Forbidden),
            ("240.0.0.1", Zone::Forbidden),
            ("255.255.255.255", Zone::Forbidden),
            ("::", Zone::Forbidden),
            ("::7f00:1", Zone::Forbidden),
            ("2002:7f00:1::", Zone::Forbidden),
            ("2001:0:1::1", Zone::Forbidden),
            ("64:ff9b:1::a00:1", Zone::Forbidden),
            ("ff02::1", Zone::Forbidden),
            ("4000::1", Zone::Forbidden),
        ] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(zone(address), expected, "{text}");
        }
    }
}
