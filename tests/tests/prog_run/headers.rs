//! Headers in all their forms, whole and damaged.

use anyhow::{Result, ensure};
use culvert_abi::{Reason, proto};
use culvert_tests::fixture::{Extension, Programs, Story, nets, syn};

use super::{ALL, SCTP, at, tell};

#[test]
fn headers_in_all_their_forms() -> Result<()> {
    let [v4, v6] = nets();
    let mut stories = Vec::new();
    for (name, _, make) in ALL {
        let (client, vip, backend) = (at(v4.client, 40_000), at(v4.vip, 80), at(v4.local, 8080));
        let mut story = Story::new(format!("options, {name}"), &v4.world());
        for options in [&[1, 1, 1, 0][..], &[1; 40]] {
            story = story.becomes(
                "node_ingress",
                make(client, vip).options(options),
                make(client, backend).options(options),
            );
            story = story.becomes(
                "node_egress",
                make(backend, client).options(options),
                make(vip, client).options(options),
            );
        }
        stories.push(story);

        let (client, vip, backend) = (at(v6.client, 40_000), at(v6.vip, 80), at(v6.local, 8080));
        let authentication = Extension(51, [&[4][..], &[0; 22]].concat());
        let routing =
            |left| Extension(43, vec![2, 2, left, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let (hop, options, atomic) = (Extension::padding(0), Extension::padding(60), Extension::fragment(0, false, 7));
        let mut chains = vec![
            vec![hop.clone()],
            vec![hop.clone(), options.clone(), routing(0), authentication, options.clone()],
            vec![options.clone(); 6],
        ];
        if make as usize != SCTP as usize {
            chains.push(vec![atomic]);
        }
        let mut story = Story::new(format!("extensions, {name}"), &v6.world());
        for chain in &chains {
            story =
                story.becomes("node_ingress", make(client, vip).extended(chain), make(client, backend).extended(chain));
            story =
                story.becomes("node_egress", make(backend, client).extended(chain), make(vip, client).extended(chain));
        }
        for chain in [vec![options.clone(); 7], vec![routing(1)]] {
            story = story.left("node_ingress", make(client, vip).extended(&chain));
            story = story.left("node_egress", make(backend, client).extended(&chain));
        }
        stories.push(story);
    }
    tell(stories)
}

#[test]
fn what_cannot_be_read_is_left_alone() -> Result<()> {
    let mut programs = Programs::load()?;
    for net in nets() {
        programs.reset(&net.world())?;
        let ip = if net.vip.is_ipv4() { 20 } else { 40 };
        for (name, protocol, make) in ALL {
            let whole = make(at(net.client, 40_000), at(net.vip, 80)).frame(false);
            let needed = match protocol {
                proto::TCP => 20,
                proto::UDP => 8,
                _ => 12,
            };
            // Cut short, with lengths that agree and with lengths that lie.
            for length in 0..needed {
                let mut short = whole[..14 + ip + length].to_vec();
                set_length(&mut short, length);
                leaves(&mut programs, &short, Some(Reason::Malformed), &format!("{name} of {length} bytes"))?;
                let lie = &whole[..14 + ip + length];
                leaves(&mut programs, lie, Some(Reason::Malformed), &format!("{name} cut to {length} bytes"))?;
            }
            // The first bytes of the IP header: version and length.
            for first in 0..=255_u8 {
                let good = if net.vip.is_ipv4() { first == 0x45 } else { first >> 4 == 6 };
                let reads_options = net.vip.is_ipv4() && first >> 4 == 4 && first & 0xf > 5;
                if !good && !reads_options {
                    let mut odd = whole.clone();
                    odd[14] = first;
                    leaves(&mut programs, &odd, Some(Reason::Malformed), &format!("{name}, first byte {first:#x}"))?;
                }
            }
            // Padding of the link behind the packet is no part of it.
            let (client, backend) = (at(net.client, 40_000), at(net.local, 8080));
            let pad = [0xee; 30];
            let seen = programs.run("node_ingress", &[&whole[..], &pad].concat())?;
            ensure!(seen.bytes == [&make(client, backend).frame(false)[..], &pad].concat(), "{name} with padding");
        }
        let tagged =
            [&[2; 12][..], &[0x81, 0, 0, 5], &syn(at(net.client, 1), at(net.vip, 80)).frame(false)[12..]].concat();
        leaves(&mut programs, &tagged, None, "a tag")?;
        leaves(&mut programs, &[0; 60], None, "no protocol")?;
    }
    Ok(())
}

/// Writes the length that the IP header says.
fn set_length(frame: &mut [u8], payload: usize) {
    let (at, value) = if frame[14] >> 4 == 4 { (16, 20 + payload) } else { (18, payload) };
    frame[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

/// The packet goes on as it is at every program, and ingress counts why.
fn leaves(programs: &mut Programs, frame: &[u8], reason: Option<Reason>, about: &str) -> Result<()> {
    for program in ["pod_ingress", "node_ingress", "pod_egress", "node_egress"] {
        let before = reason.map(|reason| programs.kernel.reason(reason)).transpose()?;
        let seen = programs.run(program, frame)?;
        ensure!(seen.verdict == -1 && seen.bytes == frame, "{about} at {program}: {seen:?}");
        let counted = u64::from(program.ends_with("ingress"));
        if let (Some(reason), Some(before)) = (reason, before) {
            let after = programs.kernel.reason(reason)?;
            ensure!(after == before + counted, "{about} at {program}: {} {before} then {after}", reason.name());
        }
    }
    Ok(())
}
