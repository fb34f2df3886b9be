//! The policy in the words of the router.

use std::net::{IpAddr, ToSocketAddrs};

use crate::config;
use crate::router::settings::policy::{
    Addresses, GroupSettings, PolicySettings, RemoteHost, VhostPolicy, VhostSettings,
};

/// The policy; names in `remoteHosts` are looked up here, once.
pub(super) fn policy_settings(policy: &config::Policy) -> PolicySettings {
    let max_message_size = u64::from(policy.max_message_size);
    PolicySettings {
        max_message_size,
        vhosts: policy.enable_vhost_policy.then(|| VhostPolicy {
            default_vhost: policy.default_vhost.clone(),
            name_patterns: policy.vhost_name_patterns,
            vhosts: policy
                .vhosts
                .iter()
                .map(|vhost| vhost_settings(vhost, max_message_size))
                .collect(),
        }),
    }
}

/// Names in `remoteHosts` that lead nowhere now, with the vhost and the line of the group that they are in.
pub(super) fn unknown_hosts(policy: &config::Policy) -> Vec<(&config::Vhost, u32, &str)> {
    let mut unknown = Vec::new();
    for vhost in policy.vhosts.iter().filter(|_| policy.enable_vhost_policy) {
        for group in &vhost.groups {
            for host in &group.remote_hosts {
                if let config::RemoteHost::Name(name) = host
                    && addresses_of(name).is_empty()
                {
                    unknown.push((vhost, group.line, name.as_str()));
                }
            }
        }
    }
    unknown
}

fn vhost_settings(vhost: &config::Vhost, max_message_size: u64) -> VhostSettings {
    VhostSettings {
        name: vhost.hostname.clone(),
        aliases: vhost.aliases.clone(),
        max_connections: count(vhost.max_connections),
        unknown_users: vhost.allow_unknown_user.then(|| "$default".to_owned()),
        groups: vhost
            .groups
            .iter()
            .map(|group| group_settings(group, vhost, max_message_size))
            .collect(),
    }
}

fn group_settings(
    group: &config::Group,
    vhost: &config::Vhost,
    policy_max_message_size: u64,
) -> GroupSettings {
    let per_user = group.max_connections_per_user;
    let per_host = group.max_connections_per_host;
    let max_message_size = group.max_message_size.or(vhost.max_message_size);
    GroupSettings {
        name: group.name.clone(),
        users: group.users.clone(),
        remote_hosts: group.remote_hosts.iter().flat_map(remote_hosts).collect(),
        max_connections_per_user: count(per_user.unwrap_or(vhost.max_connections_per_user)),
        max_connections_per_host: count(per_host.unwrap_or(vhost.max_connections_per_host)),
        max_frame_size: group.max_frame_size,
        channel_max: group.max_sessions.map(|sessions| sessions.saturating_sub(1)),
        session_window: group.max_session_window,
        max_senders: group.max_senders.map(count),
        max_receivers: group.max_receivers.map(count),
        max_message_size: max_message_size.map_or(policy_max_message_size, u64::from),
        allow_dynamic_source: group.allow_dynamic_source,
        allow_anonymous_sender: group.allow_anonymous_sender,
        sources: addresses(&group.sources),
        targets: addresses(&group.targets),
    }
}

fn remote_hosts(host: &config::RemoteHost) -> Vec<RemoteHost> {
    match host {
        config::RemoteHost::Any => vec![RemoteHost::Any],
        config::RemoteHost::Range(first, last) => vec![RemoteHost::Range(*first, *last)],
        config::RemoteHost::Name(name) => addresses_of(name)
            .into_iter()
            .map(|address| RemoteHost::Range(address, address))
            .collect(),
    }
}

fn addresses_of(name: &str) -> Vec<IpAddr> {
    let found = (name, 0).to_socket_addrs();
    found.map_or_else(
        |_| Vec::new(),
        |found| found.map(|address| address.ip().to_canonical()).collect(),
    )
}

fn addresses(addresses: &config::Addresses) -> Addresses {
    match addresses {
        config::Addresses::Listed(texts) => Addresses::Listed(texts.clone()),
        config::Addresses::Patterns(patterns) => Addresses::Patterns(patterns.clone()),
    }
}

fn count(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}
