//! Domain and connection events: the part of libvirt's C interface that the `virt` crate does not
//! wrap.
//!
//! Owns the event loop's thread, the registration of two callbacks and their removal. Never asks
//! libvirt anything about a machine: an event only says where to look. With [`super::backup`] the
//! only file of this package with `unsafe` code.
//!
//! Why it is sound: each registration hands libvirt a pointer to its own boxed [`Listener`] and a
//! function that frees that box; libvirt calls the free function exactly once, after the last
//! callback, whether we deregister or the connection is closed (manual of
//! `virConnectDomainEventRegisterAny`). Where a registration fails, libvirt does not keep the
//! pointer and we free the box here. Callbacks run on the event loop's thread only, touch the
//! listener by shared reference, and hold nothing but a channel's sender, which is `Send` and
//! `Sync`. They do not panic.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;

use virt::connect::Connect;
use virt::sys;

use super::limits::EVENT_LOOP_PAUSE;
use crate::hypervisor::Change;
use crate::hypervisor::announcer::Announcer;

/// What a callback gets back: where to announce what happened.
struct Listener {
    announcer: Announcer,
}

/// Starts the event loop of this process, once; it must stand before the first connection is
/// opened.
///
/// # Errors
/// libvirt's message, or that of the thread's creation.
pub(super) fn ensure_event_loop() -> Result<(), String> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            virt::error::clear_error_callback();
            virt::event::event_register_default_impl().map_err(|error| error.to_string())?;
            let run = || {
                loop {
                    if let Err(error) = virt::event::event_run_default_impl() {
                        tracing::warn!(%error, "libvirt's event loop stumbled");
                        // The loop fails only while the process has no memory or descriptors left.
                        std::thread::sleep(EVENT_LOOP_PAUSE);
                    }
                }
            };
            std::thread::Builder::new()
                .name("libvirt-events".to_owned())
                .spawn(run)
                .map(|_| ())
                .map_err(|error| error.to_string())
        })
        .clone()
}

/// A connection with its callbacks; dropping it removes them.
pub(super) struct Subscription {
    connection: Connect,
    lifecycle: c_int,
    close: CloseCallback,
}

/// libvirt's test driver knows no close callback, having nothing that closes.
#[derive(PartialEq, Eq)]
enum CloseCallback {
    Registered,
    Unsupported,
}

impl Subscription {
    /// Asks for lifecycle events of all domains and for the end of the connection.
    pub(super) fn open(
        connection: &Connect,
        announcer: &Announcer,
    ) -> Result<Self, virt::error::Error> {
        let listener = || {
            let listener = Listener { announcer: announcer.clone() };
            Box::into_raw(Box::new(listener)).cast::<c_void>()
        };
        let opaque = listener();
        type Lifecycle = unsafe extern "C" fn(
            sys::virConnectPtr,
            sys::virDomainPtr,
            c_int,
            c_int,
            *mut c_void,
        ) -> c_int;
        type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
        // SAFETY: libvirt wants the generic function type here and calls it with the type that
        // belongs to the event id, which for VIR_DOMAIN_EVENT_ID_LIFECYCLE is exactly `Lifecycle`
        // (libvirt's own VIR_DOMAIN_EVENT_CALLBACK cast).
        let callback = unsafe { std::mem::transmute::<Lifecycle, Generic>(on_lifecycle) };
        // SAFETY: the connection is open for as long as we hold it; `opaque` is a live box that
        // `free_listener` frees.
        let lifecycle = unsafe {
            sys::virConnectDomainEventRegisterAny(
                connection.as_ptr(),
                std::ptr::null_mut(),
                sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE as c_int,
                Some(callback),
                opaque,
                Some(free_listener),
            )
        };
        if lifecycle < 0 {
            let error = virt::error::Error::last_error();
            // SAFETY: a registration that failed does not keep the pointer, so the box is still
            // ours alone.
            unsafe { free_listener(opaque) };
            return Err(error);
        }
        let opaque = listener();
        // SAFETY: as above; the function has exactly the type that libvirt names for it.
        let registered = unsafe {
            sys::virConnectRegisterCloseCallback(
                connection.as_ptr(),
                Some(on_close),
                opaque,
                Some(free_listener),
            )
        };
        let close = if registered < 0 {
            // SAFETY: a registration that failed does not keep the pointer, so the box is still
            // ours alone.
            unsafe { free_listener(opaque) };
            CloseCallback::Unsupported
        } else {
            CloseCallback::Registered
        };
        Ok(Self { connection: connection.clone(), lifecycle, close })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // SAFETY: the connection is open, and the number came from registering on it; libvirt frees
        // the listener.
        unsafe {
            sys::virConnectDomainEventDeregisterAny(self.connection.as_ptr(), self.lifecycle);
        }
        if self.close == CloseCallback::Registered {
            // SAFETY: the connection is open and this very function is registered on it; libvirt
            // frees the listener.
            unsafe {
                sys::virConnectUnregisterCloseCallback(self.connection.as_ptr(), Some(on_close));
            }
        }
    }
}

/// libvirt calls this on the event loop's thread for each change in a domain's life.
unsafe extern "C" fn on_lifecycle(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: `opaque` is the box of this registration, alive until `free_listener`, and only ever
    // shared.
    let listener = unsafe { &*opaque.cast::<Listener>() };
    // SAFETY: libvirt holds `domain` during the callback; the name lives as long as it does.
    let name = unsafe { sys::virDomainGetName(domain) };
    if !name.is_null() {
        // SAFETY: libvirt's names end with a zero byte.
        let name = unsafe { CStr::from_ptr(name) };
        let vm = name.to_str().ok().and_then(|name| listener.announcer.names().vm_of_domain(name));
        if let Some(vm) = vm {
            listener.announcer.announce(Change::Machine(vm));
        }
    }
    0
}

/// libvirt calls this on the event loop's thread when the connection ends without our asking.
unsafe extern "C" fn on_close(_connection: sys::virConnectPtr, reason: c_int, opaque: *mut c_void) {
    // SAFETY: `opaque` is the box of this registration, alive until `free_listener`, and only ever
    // shared.
    let listener = unsafe { &*opaque.cast::<Listener>() };
    let reason = match reason {
        0 => "input or output error",
        1 => "libvirt closed it",
        2 => "libvirt does not answer",
        _ => "closed",
    };
    listener.announcer.announce(Change::ConnectionLost(reason.to_owned()));
}

/// libvirt calls this once when it needs a listener no more.
unsafe extern "C" fn free_listener(opaque: *mut c_void) {
    // SAFETY: `opaque` came from `Box::into_raw` of a `Listener`, and this runs once for it.
    drop(unsafe { Box::from_raw(opaque.cast::<Listener>()) });
}
