//! Where a registry may lead to: the hosts that it names as token servers and as targets of redirects. Pure.
//!
//! A registry is chosen by who creates a pod, and the requests come from the node. So a registry elsewhere must not make
//! the node ask services of its own, such as a cloud's metadata service, which gives credentials of the machine to
//! whoever asks from it. A registry that is itself on such an address leads nowhere that it could not ask itself.

use hyper::Uri;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};

/// Metadata services of clouds outside of link-local addresses: AWS and Google by IPv6, Alibaba.
const METADATA: [IpAddr; 3] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(std::net::Ipv4Addr::new(100, 100, 100, 200)),
];

/// Addresses that mean the node itself, or something that serves this node alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zone {
    Loopback,
    LinkLocal,
}

impl Zone {
    /// `None` for all other addresses.
    fn of(address: IpAddr) -> Option<Self> {
        let address = address.to_canonical();
        // The kernel connects to itself for 0.0.0.0.
        if address.is_loopback() || address.is_unspecified() {
            return Some(Self::Loopback);
        }
        let is_link_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        (is_link_local || METADATA.contains(&address)).then_some(Self::LinkLocal)
    }
}

/// A registry named a host that it must not lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{address} is {}, where a registry that is elsewhere must not send the node",
    match zone {
        Zone::Loopback => "a loopback address",
        Zone::LinkLocal => "a link-local address or a metadata service",
    }
)]
pub(crate) struct OutOfReach {
    address: IpAddr,
    zone: Zone,
}

/// Which addresses the registry itself has, as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    loopback: AtomicBool,
    link_local: AtomicBool,
}

impl Reach {
    /// That of a host, by what its name says.
    pub(crate) fn of(authority: &str) -> Self {
        let reach = Self::default();
        match literal(host_of(authority)) {
            Some(address) => reach.learn(address),
            None if host_of(authority).eq_ignore_ascii_case("localhost") => {
                reach.loopback.store(true, Ordering::Relaxed);
            }
            None => {}
        }
        reach
    }

    /// Remembers an address that the registry's name was resolved to.
    pub(crate) fn learn(&self, address: IpAddr) {
        match Zone::of(address) {
            Some(Zone::Loopback) => self.loopback.store(true, Ordering::Relaxed),
            Some(Zone::LinkLocal) => self.link_local.store(true, Ordering::Relaxed),
            None => {}
        }
    }

    /// Fails for an address that the registry must not lead to.
    pub(crate) fn check(&self, address: IpAddr) -> Result<(), OutOfReach> {
        let Some(zone) = Zone::of(address) else { return Ok(()) };
        let allowed = match zone {
            Zone::Loopback => &self.loopback,
            Zone::LinkLocal => &self.link_local,
        };
        if allowed.load(Ordering::Relaxed) { Ok(()) } else { Err(OutOfReach { address, zone }) }
    }

    /// Fails for a URL whose host is such an address. Names are checked when they are resolved.
    pub(crate) fn check_url(&self, url: &Uri) -> Result<(), OutOfReach> {
        url.host().and_then(literal).map_or(Ok(()), |address| self.check(address))
    }
}

/// The address that a host in a URL is, unless it is a name.
fn literal(host: &str) -> Option<IpAddr> {
    host.trim_matches(['[', ']']).parse().ok()
}

/// An authority without its port.
pub(crate) fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, _)) if !authority.ends_with(']') => host,
        _ => authority,
    }
}

/// Whether an authority has no port, or one that is a number from 1 to 65535. Other ports would be ignored.
pub(crate) fn has_valid_port(authority: &str) -> bool {
    let after_host = &authority[host_of(authority).len()..];
    after_host.is_empty() || after_host[1..].parse::<u16>().is_ok_and(|port| port != 0)
}

/// How close a host that a registry names is to the host of the registry, for the settings of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nearness {
    /// The same host, perhaps on another port.
    Same,
    /// A name below the same domain, which has at least two labels: `auth.corp.example` beside `registry.corp.example`.
    Sibling,
    Other,
}

impl Nearness {
    /// That of `url` to the host with this authority.
    pub(crate) fn of(url: &Uri, authority: &str) -> Self {
        let lower = |host: &str| host.trim_end_matches('.').to_ascii_lowercase();
        let (own, named) = (lower(host_of(authority)), lower(url.host().unwrap_or_default()));
        if own == named {
            return Self::Same;
        }
        if literal(&own).is_some() || literal(&named).is_some() {
            return Self::Other;
        }
        let is_below = |domain: &str| {
            domain.contains('.')
                && named.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let parent = own.split_once('.').map_or("", |(_, parent)| parent);
        if is_below(parent) || is_below(&own) { Self::Sibling } else { Self::Other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may_lead(from: &str, to: &str) -> bool {
        Reach::of(from).check_url(&format!("http://{to}/x").parse().unwrap()).is_ok()
    }

    #[test]
    fn no_registry_leads_to_services_of_the_node() {
        for (from, to, expected) in [
            ("r.example", "auth.example", true),
            ("r.example", "10.0.0.1:5000", true),
            ("r.example", "[fd00::1]", true),
            ("r.example", "169.254.169.254", false),
            ("r.example", "169.254.1.1:80", false),
            ("r.example", "[fe80::1]:80", false),
            ("r.example", "[fd00:ec2::254]", false),
            ("r.example", "100.100.100.200", false),
            ("r.example", "127.0.0.1:5000", false),
            ("r.example", "0.0.0.0", false),
            ("r.example", "[::1]", false),
            ("r.example", "[::ffff:127.0.0.1]", false),
            ("r.example", "[::ffff:169.254.169.254]", false),
            ("10.0.0.1:5000", "127.0.0.1", false),
            ("127.0.0.1:5000", "127.0.0.1:5001", true),
            ("127.0.0.1:5000", "[::1]:5001", true),
            ("localhost:5000", "127.0.0.1:5001", true),
            ("[::1]:5000", "127.0.0.1:5001", true),
            ("127.0.0.1:5000", "169.254.169.254", false),
            ("169.254.10.1", "169.254.169.254", true),
            ("169.254.10.1", "127.0.0.1", false),
        ] {
            assert_eq!(may_lead(from, to), expected, "{from} to {to}");
        }
        let reach = Reach::of("registry.test:5000");
        let error = reach.check([127, 0, 0, 1].into()).unwrap_err();
        assert!(error.to_string().starts_with("127.0.0.1 is a loopback address, where"), "{error}");
        // The registry's name was resolved.
        reach.learn([127, 0, 0, 2].into());
        assert_eq!(reach.check([127, 0, 0, 1].into()), Ok(()));
        assert!(reach.check([169, 254, 169, 254].into()).is_err());
    }

    #[test]
    fn hosts_near_the_registry() {
        for (authority, named, expected) in [
            ("r.example:5000", "r.example:5001", Nearness::Same),
            ("R.example", "r.EXAMPLE.", Nearness::Same),
            ("10.0.0.1:5000", "10.0.0.1", Nearness::Same),
            ("[::1]:5000", "[::1]", Nearness::Same),
            ("10.0.0.1:5000", "10.0.0.2", Nearness::Other),
            ("registry.corp.example", "auth.corp.example:5001", Nearness::Sibling),
            ("registry.corp.example", "corp.example", Nearness::Sibling),
            ("registry.corp.example", "a.b.corp.example", Nearness::Sibling),
            ("registry.corp.example", "badcorp.example", Nearness::Other),
            ("registry.example", "auth.registry.example", Nearness::Sibling),
            ("registry.example", "other.example", Nearness::Other),
            ("registry", "auth", Nearness::Other),
            ("registry", "auth.registry", Nearness::Other),
            ("1.2.3.4", "9.2.3.4", Nearness::Other),
        ] {
            let url = format!("https://{named}/token").parse().unwrap();
            assert_eq!(Nearness::of(&url, authority), expected, "{named} of {authority}");
        }
    }

    #[test]
    fn ports() {
        for (authority, host, is_valid) in [
            ("r.example", "r.example", true),
            ("r.example:5000", "r.example", true),
            ("r.example:65536", "r.example", false),
            ("r.example:0", "r.example", false),
            ("r.example:", "r.example", false),
            ("r.example:http", "r.example", false),
            ("[::1]", "[::1]", true),
            ("[::1]:80", "[::1]", true),
            ("[::1]:x", "[::1]", false),
            ("", "", true),
        ] {
            assert_eq!((host_of(authority), has_valid_port(authority)), (host, is_valid), "{authority}");
        }
    }
}
