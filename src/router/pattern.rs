//! Matching of addresses against prefixes and patterns (qdrouterd 1.19: tokens between `.` and `/`).

use std::collections::HashMap;

/// An address as far as matching cares: without a URL's scheme and authority, without separators at its ends.
///
/// qdrouterd 1.19 takes `//x/…` and anything with `:/` for a URL; here only a real one is: `scheme://authority/path`
/// with a valid scheme, or `amqp:` and `amqps:` in front of a path (IoT Hub: taken as well).
pub(super) fn normalize(address: &str) -> &str {
    strip_url(address).trim_matches(is_separator)
}

/// The path of a URL; anything else as it is.
pub(super) fn strip_url(address: &str) -> &str {
    if let Some(url) = Url::parse(address) {
        return url.path;
    }
    match address.split_once(':') {
        Some((scheme, path)) if is_amqp(scheme) && !path.is_empty() && !path.starts_with("//") => {
            path.strip_prefix('/').unwrap_or(path)
        }
        Some(_) | None => address,
    }
}

/// `scheme://authority/path`, as it is written: a `?` or `#` is data, for device ids may have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Url<'a> {
    pub(super) scheme: &'a str,
    pub(super) authority: &'a str,
    pub(super) path: &'a str,
}

impl<'a> Url<'a> {
    pub(super) fn parse(address: &'a str) -> Option<Self> {
        let (scheme, rest) = address.split_once("://")?;
        let (authority, path) = rest.split_once('/')?;
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
        is_scheme.then_some(Url {
            scheme,
            authority,
            path,
        })
    }

    /// Whether it is an address of AMQP. Brokers give other schemes a meaning of their own (ActiveMQ: `topic://news/x`).
    pub(super) fn is_amqp(&self) -> bool {
        is_amqp(self.scheme)
    }

    /// The host of the authority, without user and port.
    pub(super) fn host(&self) -> &'a str {
        let host = self
            .authority
            .rsplit_once('@')
            .map_or(self.authority, |(_, host)| host);
        match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => host.split_once(':').map_or(host, |(host, _)| host),
        }
    }
}

fn is_amqp(scheme: &str) -> bool {
    scheme.eq_ignore_ascii_case("amqp") || scheme.eq_ignore_ascii_case("amqps")
}

const fn is_separator(c: char) -> bool {
    matches!(c, '.' | '/')
}

/// A tree of tokens. At each token exact text is tried before `*`, and `*` before `#`, with backtracking; the first
/// hit wins, whatever the order in the file.
#[derive(Debug)]
pub(super) struct PatternTree<T> {
    root: Node<T>,
}

#[derive(Debug)]
struct Node<T> {
    exact: HashMap<Box<str>, Node<T>>,
    star: Option<Box<Node<T>>>,
    hash: Option<Box<Node<T>>>,
    value: Option<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Node {
            exact: HashMap::new(),
            star: None,
            hash: None,
            value: None,
        }
    }
}

impl<T> Default for PatternTree<T> {
    fn default() -> Self {
        PatternTree {
            root: Node::default(),
        }
    }
}

impl<T: Default> PatternTree<T> {
    /// The value of a pattern, made if there is none.
    pub(super) fn entry(&mut self, pattern: &str) -> &mut T {
        let mut node = &mut self.root;
        let mut after_hash = false;
        for token in pattern.trim_matches(is_separator).split(is_separator) {
            // `#` behind `#` adds nothing.
            if token == "#" && after_hash {
                continue;
            }
            after_hash = token == "#";
            node = match token {
                "*" => node.star.get_or_insert_default(),
                "#" => node.hash.get_or_insert_default(),
                exact => node.exact.entry(exact.into()).or_default(),
            };
        }
        node.value.get_or_insert_default()
    }

    /// The value of a prefix: the pattern `PREFIX/#`.
    pub(super) fn prefix_entry(&mut self, prefix: &str) -> &mut T {
        self.entry(&format!("{}/#", prefix.trim_matches(is_separator)))
    }
}

impl<T> PatternTree<T> {
    /// The best match of an address.
    pub(super) fn find(&self, address: &str) -> Option<&T> {
        self.root.find(Tokens(Some(normalize(address))), &mut Vec::new())
    }
}

impl<T> Node<T> {
    /// `barren` are the nodes behind a `#` that have found nothing.
    fn find<'t>(&'t self, tokens: Tokens<'_>, barren: &mut Vec<&'t Node<T>>) -> Option<&'t T> {
        let Some((token, rest)) = tokens.split_first() else {
            let after_hash = || self.hash.as_deref().and_then(|hash| hash.value.as_ref());
            return self.value.as_ref().or_else(after_hash);
        };
        let named = [self.exact.get(token), self.star.as_deref()];
        for node in named.into_iter().flatten() {
            if let Some(value) = node.find(rest, barren) {
                return Some(value);
            }
        }
        self.hash.as_deref()?.find_behind_hash(tokens, barren)
    }

    /// Behind a `#`: as many tokens as it takes may have been its own. Whoever comes back to it comes with fewer tokens,
    /// and these have been tried: an address costs one walk for each `#`, not one for each way to share it out.
    fn find_behind_hash<'t>(
        &'t self,
        mut tokens: Tokens<'_>,
        barren: &mut Vec<&'t Node<T>>,
    ) -> Option<&'t T> {
        if self.exact.is_empty() && self.star.is_none() && self.hash.is_none() {
            return self.value.as_ref();
        }
        if barren.iter().any(|node| std::ptr::eq(*node, self)) {
            return None;
        }
        loop {
            if let Some(value) = self.find(tokens, barren) {
                return Some(value);
            }
            match tokens.split_first() {
                Some((_, rest)) => tokens = rest,
                None => break,
            }
        }
        barren.push(self);
        None
    }
}

/// What is left of an address, token by token.
#[derive(Clone, Copy)]
struct Tokens<'a>(Option<&'a str>);

impl<'a> Tokens<'a> {
    fn split_first(self) -> Option<(&'a str, Tokens<'a>)> {
        let text = self.0?;
        Some(match text.split_once(is_separator) {
            Some((token, rest)) => (token, Tokens(Some(rest))),
            None => (text, Tokens(None)),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn tree(prefixes: &[&'static str], patterns: &[&'static str]) -> PatternTree<&'static str> {
        let mut tree = PatternTree::default();
        for &prefix in prefixes {
            *tree.prefix_entry(prefix) = prefix;
        }
        for &pattern in patterns {
            *tree.entry(pattern) = pattern;
        }
        tree
    }

    #[test]
    fn the_most_specific_wins() {
        let tree = tree(
            &["bal/", "bal/deep", "eh", "eh/Partitions/"],
            &["#", "*/x", "a/#/z", "a/*/z", "a/b/z"],
        );
        for (address, expected) in [
            ("bal/deep/1", "bal/deep"),
            ("bal/1", "bal/"),
            ("eh", "eh"),
            ("eh/Partitions/3", "eh/Partitions/"),
            ("eh2", "#"),
            ("q/x", "*/x"),
            ("a/b/z", "a/b/z"),
            ("a/c/z", "a/*/z"),
            ("a/b/c/z", "a/#/z"),
            ("a/z", "a/#/z"),
            ("anything/at/all", "#"),
        ] {
            assert_eq!(tree.find(address), Some(&expected), "{address}");
        }
    }

    /// As `find`, in every way there is to share out the tokens.
    fn find_slowly<'t>(node: &'t Node<String>, tokens: &[&str]) -> Option<&'t String> {
        let [token, rest @ ..] = tokens else {
            let hash = node.hash.as_deref();
            return node.value.as_ref().or_else(|| hash?.value.as_ref());
        };
        let named = [node.exact.get(*token), node.star.as_deref()];
        let found = named.into_iter().flatten().find_map(|it| find_slowly(it, rest));
        let hash = node.hash.as_deref();
        let behind = || (0..=tokens.len()).find_map(|taken| find_slowly(hash?, tokens.get(taken..)?));
        found.or_else(behind)
    }

    proptest! {
        #[test]
        fn what_is_not_tried_again_would_find_nothing(
            patterns in vec("[ab*#](/[ab*#]){0,6}", 1..6),
            address in "[abc](/[abc]){0,9}",
        ) {
            let mut tree = PatternTree::default();
            for pattern in &patterns {
                *tree.entry(pattern) = pattern.clone();
            }
            let tokens: Vec<&str> = address.split('/').collect();
            prop_assert_eq!(tree.find(&address), find_slowly(&tree.root, &tokens));
        }
    }

    /// A frame holds thousands of tokens, and what is waited for by all devices is one thread.
    #[test]
    fn no_address_costs_more_than_one_walk_for_each_hash() {
        let tree = tree(&[], &["#/a/#/b/#/c/#/d", "#/*/#/*/#/*/e"]);
        let long = "a/".repeat(8000);
        for end in ["a/b/c/e/x", "a/b/c/d/x", "a/b/c/x/e/x"] {
            assert_eq!(tree.find(&format!("{long}{end}")), None, "{end}");
        }
        assert_eq!(tree.find(&format!("{long}b/c/a/d")), Some(&"#/a/#/b/#/c/#/d"));
        assert_eq!(tree.find(&format!("{long}x/e")), Some(&"#/*/#/*/#/*/e"));
    }

    #[test]
    fn a_url_is_its_path_and_all_else_is_as_it_is_written() {
        for (address, expected) in [
            ("amqps://h:5671/d/1", "d/1"),
            ("amqps://h//d/1", "/d/1"),
            ("http://h/d", "d"),
            ("amqp:/d/1", "d/1"),
            ("amqps:d/1", "d/1"),
            ("AMQPS:d:/1", "d:/1"),
            ("amqps:d://h/x", "d://h/x"),
            ("amqps://h", "amqps://h"),
            ("amqps:", "amqps:"),
            ("amqps", "amqps"),
            ("d:/x", "d:/x"),
            ("d/a://h/x", "d/a://h/x"),
            ("//h/x", "//h/x"),
            ("://h/x", "://h/x"),
        ] {
            assert_eq!(strip_url(address), expected, "{address}");
        }
    }

    #[test]
    fn a_host_is_neither_its_user_nor_its_port() {
        for (authority, expected) in [
            ("h", "h"),
            ("h:5671", "h"),
            ("u:p@h:5671", "h"),
            ("u@x@h", "h"),
            ("[fe80::1]:5671", "fe80::1"),
            ("[fe80::1]", "fe80::1"),
            ("[fe80::1", "[fe80"),
            ("", ""),
        ] {
            let address = format!("amqp://{authority}/x");
            let url = Url::parse(&address).expect("a URL");
            assert_eq!(url.host(), expected, "{authority}");
        }
    }
}
