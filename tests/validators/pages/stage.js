// What every page of a splat viewer shares: what it is asked, the camera, and the background, whose channels are 0 or 1
// so that no transfer function of a viewer changes it.
import * as THREE from 'three';

export const asked = JSON.parse(decodeURIComponent(location.hash.slice(1)));
export const scene = new THREE.Scene();
scene.background = new THREE.Color('#00ff00');
export const camera = new THREE.PerspectiveCamera(asked.fov, 1, 0.01, 100);
camera.up.set(...asked.up);
camera.position.set(...asked.position);
camera.lookAt(...asked.target);

export function show(renderer) {
    renderer.setSize(innerWidth, innerHeight);
    document.body.append(renderer.domElement);
}

export const frame = () => new Promise(requestAnimationFrame);
