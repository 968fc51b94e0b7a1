//! A real keeper with a real back end, and front ends of all kinds: User Mode Linux guests, a scripted driver, an
//! independent implementation of vhost-user, and hostile ones; and VMMs whose guest's memory is populated on demand.

#[cfg(test)]
mod agent;
#[cfg(test)]
mod common;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod driver;
#[cfg(test)]
mod ends;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod pod;
#[cfg(test)]
mod uml;
