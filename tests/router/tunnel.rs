//! A device and a hub with two links between them, one each way: where most scenarios begin.

use linkrouterd::router::settings::RouterSettings;

use crate::peer::Announces;
use crate::world::{DEVICE_AUTO, HUB_AUTO, PeerId, World, settings};

pub(crate) const UP: &str = "/devices/d1/messages/events";
pub(crate) const DOWN: &str = "/devices/d1/messages/deviceBound";

/// A device with a sender `up` (handle 0) and a receiver `down` (handle 1), and the hub's ends of them.
pub(crate) struct Tunnel {
    pub(crate) world: World,
    pub(crate) device: PeerId,
    pub(crate) hub: PeerId,
    pub(crate) up: (u16, u32),
    pub(crate) down: (u16, u32),
}

pub(crate) fn tunnel_with(device_window: u32, hub_window: u32) -> Tunnel {
    tunnel_of(settings(), device_window, hub_window)
}

pub(crate) fn tunnel_of(settings: RouterSettings, device_window: u32, hub_window: u32) -> Tunnel {
    let announce = |window| Announces {
        window,
        ..Announces::default()
    };
    let mut world = World::new(settings);
    // No window is refreshed: what is not taken stays with the router.
    let (mut device_auto, mut hub_auto) = (DEVICE_AUTO, HUB_AUTO);
    device_auto.window = false;
    hub_auto.window = false;
    world.hub = Some((hub_auto, announce(hub_window)));
    let device = world.device_with("dev", device_auto, announce(device_window));
    world.peer(device).attach(0, 0, "up", true, UP);
    world.peer(device).attach(0, 1, "down", false, DOWN);
    world.run();
    let hub = world.hub_id();
    let up = world.peer(hub).find("up@dev", false).expect("a receiver");
    let down = world.peer(hub).find("down@dev", true).expect("a sender");
    world.peer(hub).grant(up.0, up.1, 100);
    world.peer(device).grant(0, 1, 100);
    world.run();
    world.peer(device).skip();
    world.peer(hub).skip();
    Tunnel {
        world,
        device,
        hub,
        up,
        down,
    }
}

pub(crate) fn tunnel() -> Tunnel {
    tunnel_with(2048, 2048)
}
