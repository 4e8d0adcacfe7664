//! The kernel's routing netlink, in our own types: read links, addresses and routes, change them, hear of changes.
//!
//! IPv4 only. Nothing here decides anything.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, Prop,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use rtnetlink::MulticastGroup;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::values::{InterfaceAddress, Ipv4Network, Mac, Route};

/// The kernel answers in microseconds; this is for answers that never come because they could not be decoded.
const ANSWER: Duration = Duration::from_secs(5);
/// `IFA_F_PERMANENT` has no lifetime; this is the lifetime that means for ever.
const FOR_EVER: u32 = u32::MAX;

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Number, stable while it exists even when it is renamed.
    pub index: u32,
    /// Its present name.
    pub name: String,
    /// Further names (`altname`).
    pub alt_names: Vec<String>,
    /// Hardware address in use, where it is an Ethernet one.
    pub mac: Option<Mac>,
    /// The hardware address it came with.
    pub permanent_mac: Option<Mac>,
    /// In bytes.
    pub mtu: u32,
    /// What software made it ("bridge", "veth", "wireguard"…); none for a network card.
    pub kind: Option<String>,
    /// Ethernet, and not the loopback.
    pub ethernet: bool,
    /// Set up (IFF_UP).
    pub up: bool,
    /// Has a carrier (IFF_LOWER_UP).
    pub carrier: bool,
    /// Belongs to a bond, a bridge or the like.
    pub enslaved: bool,
}

impl Link {
    /// Whether it is a network card of its own; `extra_kinds` of what software made count as one, too.
    pub fn is_card(&self, extra_kinds: &[String]) -> bool {
        let named = |kind: &String| extra_kinds.contains(kind);
        self.ethernet
            && !self.enslaved
            && self.mac.is_some()
            && self.kind.as_ref().is_none_or(named)
    }
}

/// One IPv4 address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    /// Of the interface.
    pub index: u32,
    /// Address, prefix and peer.
    pub address: InterfaceAddress,
    /// It ends by itself unless somebody renews it.
    pub expires: bool,
    /// Usable beyond this machine and link.
    pub global: bool,
}

/// One IPv4 unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkRoute {
    /// Of the interface it leaves by.
    pub index: u32,
    /// Where to, by what.
    pub route: Route,
    /// Who made it.
    pub origin: Origin,
}

/// Who made a route, as far as we care (`rtm_protocol`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The kernel, along with an address.
    Kernel,
    /// An administrator or a configuration file.
    Administrator,
    /// A DHCP client.
    Dhcp,
    /// A routing daemon or something else.
    Other,
}

/// All of it at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// By index.
    pub links: Vec<Link>,
    /// In the kernel's order.
    pub addresses: Vec<LinkAddress>,
    /// In the kernel's order.
    pub routes: Vec<LinkRoute>,
}

impl Snapshot {
    /// The interface with this index.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// Its addresses that reach beyond the link.
    pub fn global_addresses(&self, index: u32) -> impl Iterator<Item = &LinkAddress> {
        let addresses = self.addresses.iter();
        addresses.filter(move |found| found.index == index && found.global)
    }

    /// Whether the interface has this address.
    pub fn has_address(&self, index: u32, address: InterfaceAddress) -> bool {
        self.addresses
            .iter()
            .any(|found| found.index == index && found.address == address)
    }

    /// Whether the kernel would refuse this route as being there already, on whatever interface.
    pub fn has_route(&self, route: &Route) -> bool {
        let key = |route: &Route| (route.to, route.metric.unwrap_or(0));
        self.routes
            .iter()
            .any(|found| key(&found.route) == key(route))
    }
}

/// A netlink socket with its task on the current runtime.
#[derive(Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
}

/// Hears that something changed; what it was is read by a new [`Snapshot`].
pub struct Changes {
    messages: Box<dyn futures_util::Stream<Item = ()> + Send + Unpin>,
}

/// What can go wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("failed to open a netlink socket")]
    Open(#[source] io::Error),
    /// The kernel refused.
    #[error("failed to {what}")]
    Refused {
        /// What was asked.
        what: String,
        /// Why not.
        #[source]
        source: rtnetlink::Error,
    },
    /// No answer.
    #[error("no answer from the kernel to: {what}")]
    Silent {
        /// What was asked.
        what: String,
    },
}

impl NetlinkError {
    /// The kernel's error number, positive.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused {
                source: rtnetlink::Error::NetlinkError(message),
                ..
            } => message.code.map(|code| code.get().wrapping_neg()),
            _ => None,
        }
    }
}

impl Netlink {
    /// Opens a socket that also hears of changes.
    ///
    /// # Errors
    /// `Open`.
    pub fn open() -> Result<(Self, Changes), NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
        ];
        let (connection, handle, messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
        let changes = Changes {
            messages: Box::new(messages.map(|_| ())),
        };
        Ok((
            Self {
                handle,
                connection: tokio::spawn(connection),
            },
            changes,
        ))
    }

    /// Reads links, addresses and routes.
    ///
    /// # Errors
    /// `Refused`, `Silent`.
    pub async fn snapshot(&self) -> Result<Snapshot, NetlinkError> {
        // Statistics are most of a link message, and nothing here needs them.
        let links = self
            .handle
            .link()
            .get()
            .set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
        let links: Vec<LinkMessage> =
            asked("list the interfaces", links.execute().try_collect()).await?;

        let mut addresses = self.handle.address().get();
        addresses.message_mut().header.family = AddressFamily::Inet;
        let addresses: Vec<AddressMessage> =
            asked("list the addresses", addresses.execute().try_collect()).await?;

        let mut routes = RouteMessage::default();
        routes.header.address_family = AddressFamily::Inet;
        let routes = self.handle.route().get(routes);
        let routes: Vec<RouteMessage> =
            asked("list the routes", routes.execute().try_collect()).await?;

        let mut links: Vec<Link> = links.iter().map(link).collect();
        links.sort_by_key(|link| link.index);
        Ok(Snapshot {
            links,
            addresses: addresses.iter().filter_map(address).collect(),
            routes: routes.iter().filter_map(route).collect(),
        })
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// `Refused`, `Silent`.
    pub async fn set_up(&self, index: u32) -> Result<(), NetlinkError> {
        let mut message = link_message(index);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        asked(
            "set an interface up",
            self.handle.link().set(message).execute(),
        )
        .await
    }

    /// Sets an interface down.
    ///
    /// # Errors
    /// `Refused`, `Silent`.
    pub async fn set_down(&self, index: u32) -> Result<(), NetlinkError> {
        let mut message = link_message(index);
        message.header.change_mask = LinkFlags::Up;
        asked(
            "set an interface down",
            self.handle.link().set(message).execute(),
        )
        .await
    }

    /// Sets the MTU, in bytes.
    ///
    /// # Errors
    /// `Refused`, `Silent`.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = link_message(index);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        asked("set an MTU", self.handle.link().set(message).execute()).await
    }

    /// Adds an address.
    ///
    /// # Errors
    /// `Refused` (also when it is there already), `Silent`.
    pub async fn add_address(
        &self,
        index: u32,
        address: InterfaceAddress,
    ) -> Result<(), NetlinkError> {
        let mut request =
            self.handle
                .address()
                .add(index, IpAddr::V4(address.address), address.prefix);
        *request.message_mut() = address_message(index, address);
        asked(
            &format!("add the address '{}'", address.address),
            request.execute(),
        )
        .await
    }

    /// Deletes an address.
    ///
    /// # Errors
    /// `Refused` (also when it is not there), `Silent`.
    pub async fn delete_address(
        &self,
        index: u32,
        address: InterfaceAddress,
    ) -> Result<(), NetlinkError> {
        let request = self.handle.address().del(address_message(index, address));
        asked(
            &format!("delete the address '{}'", address.address),
            request.execute(),
        )
        .await
    }

    /// Adds a route.
    ///
    /// # Errors
    /// `Refused` (also when it is there already), `Silent`.
    pub async fn add_route(&self, index: u32, route: &Route) -> Result<(), NetlinkError> {
        let request = self.handle.route().add(route_message(index, route));
        asked(
            &format!("add the route to '{}'", route.to),
            request.execute(),
        )
        .await
    }

    /// Deletes a route.
    ///
    /// # Errors
    /// `Refused` (also when it is not there), `Silent`.
    pub async fn delete_route(&self, index: u32, route: &Route) -> Result<(), NetlinkError> {
        let request = self.handle.route().del(route_message(index, route));
        asked(
            &format!("delete the route to '{}'", route.to),
            request.execute(),
        )
        .await
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Changes {
    /// Waits for a change; several that wait already count as one.
    pub async fn next(&mut self) {
        if self.messages.next().await.is_none() {
            // The socket is gone: there will be no news, and asking again must not spin.
            std::future::pending::<()>().await;
        }
        while let Some(Some(())) = futures_util::FutureExt::now_or_never(self.messages.next()) {}
    }
}

async fn asked<T>(
    what: &str,
    answer: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, NetlinkError> {
    match timeout(ANSWER, answer).await {
        Ok(answer) => answer.map_err(|source| NetlinkError::Refused {
            what: what.into(),
            source,
        }),
        Err(_) => Err(NetlinkError::Silent { what: what.into() }),
    }
}

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        alt_names: Vec::new(),
        mac: None,
        permanent_mac: None,
        mtu: 0,
        kind: None,
        ethernet: message.header.link_layer_type == LinkLayerType::Ether
            && !flags.contains(LinkFlags::Loopback),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        enslaved: false,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes),
            LinkAttribute::PermAddress(bytes) => link.permanent_mac = mac(bytes),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(_) => link.enslaved = true,
            LinkAttribute::PropList(properties) => {
                let names = properties.iter().filter_map(|property| match property {
                    Prop::AltIfName(name) => Some(name.clone()),
                    _ => None,
                });
                link.alt_names = names.collect();
            }
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    <[u8; 6]>::try_from(bytes)
        .ok()
        .filter(|bytes| bytes != &[0; 6])
        .map(Mac)
}

fn address(message: &AddressMessage) -> Option<LinkAddress> {
    let (mut local, mut other, mut expires) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => local = Some(*address),
            AddressAttribute::Address(IpAddr::V4(address)) => other = Some(*address),
            AddressAttribute::CacheInfo(info) => expires = info.ifa_valid != FOR_EVER,
            _ => {}
        }
    }
    let address = local.or(other)?;
    Some(LinkAddress {
        index: message.header.index,
        address: InterfaceAddress {
            address,
            prefix: message.header.prefix_len,
            peer: other.filter(|other| *other != address),
        },
        expires,
        global: message.header.scope == AddressScope::Universe
            && !address.is_link_local()
            && !address.is_loopback(),
    })
}

fn route(message: &RouteMessage) -> Option<LinkRoute> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
        || header.tos != 0
    {
        return None;
    }
    let (mut base, mut via, mut index, mut metric, mut source) =
        (Ipv4Addr::UNSPECIFIED, None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => base = *address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => via = Some(*address),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
            RouteAttribute::Oif(number) => index = Some(*number),
            RouteAttribute::Priority(number) => metric = Some(*number),
            _ => {}
        }
    }
    Some(LinkRoute {
        // Without one it has several next hops, which this slice does not handle.
        index: index?,
        route: Route {
            to: Ipv4Network::containing(base, header.destination_prefix_length)?,
            via,
            on_link: header.flags.contains(RouteFlags::Onlink),
            metric,
            source,
        },
        origin: match header.protocol {
            RouteProtocol::Kernel => Origin::Kernel,
            RouteProtocol::Boot | RouteProtocol::Static => Origin::Administrator,
            RouteProtocol::Dhcp => Origin::Dhcp,
            _ => Origin::Other,
        },
    })
}

fn link_message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn address_message(index: u32, address: InterfaceAddress) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = index;
    message.header.prefix_len = address.prefix;
    message
        .attributes
        .push(AddressAttribute::Local(address.address.into()));
    message.attributes.push(AddressAttribute::Address(
        address.peer.unwrap_or(address.address).into(),
    ));
    if address.prefix < 31 && address.peer.is_none() {
        let host_bits = u32::MAX >> address.prefix;
        let broadcast = Ipv4Addr::from(u32::from(address.address) | host_bits);
        message
            .attributes
            .push(AddressAttribute::Broadcast(broadcast));
    }
    message
}

fn route_message(index: u32, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if route.via.is_some() {
        RouteScope::Universe
    } else {
        RouteScope::Link
    };
    message.header.destination_prefix_length = route.to.prefix();
    if route.to.prefix() > 0 {
        message
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::Inet(
                route.to.base(),
            )));
    }
    if let Some(gateway) = route.via {
        message
            .attributes
            .push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
        if route.on_link {
            message.header.flags = RouteFlags::Onlink;
        }
    }
    if let Some(source) = route.source {
        message
            .attributes
            .push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
    }
    if let Some(metric) = route.metric {
        message.attributes.push(RouteAttribute::Priority(metric));
    }
    message.attributes.push(RouteAttribute::Oif(index));
    message
}
